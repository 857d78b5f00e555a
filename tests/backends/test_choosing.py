"""Finding, choosing and listing backends; strangers that come as a `.dist-info` on `sys.path`."""

import json
import re
import textwrap

import numpy as np
import pytest

import xpnn.backend
import xpnn.ops
from xpnn.backend import Backend
from xpnn.errors import BackendError
from xpnn.layers import Conv2D, Dense, Flatten, MaxPool2D, ReLU, Run, Sequential
from xpnn.random import Stream

SHIPPED = ["cupy", "jax", "numpy", "strict", "torch"]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv("XPNN_BACKEND", raising=False)
    monkeypatch.delenv("XPNN_KERNELS", raising=False)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution with one module and the backends in it, the way pip would."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(module, source, **points):
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{attribute}" for name, attribute in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[xpnn.backends]", *lines, ""]))
        monkeypatch.delitem(__import__("sys").modules, module, raising=False)

    return install


STRANGER = '''
    """A whole backend: NumPy's arrays, another relu, an executor of its own would go here too."""

    import array_api_compat.numpy as xp
    from xpnn.backend import Backend

    calls = []

    def relu(ops, x):
        calls.append("relu")
        y = xp.where(x > 0, x, xp.zeros_like(x))

        def backward(dy, *, input_gradient=True):
            return (xp.where(x > 0, dy, xp.zeros_like(dy)) if input_gradient else None,)

        return y, backward

    class Stranger(Backend):
        name = "stranger"
        kernels = {"relu": relu}

        def __init__(self, device=None):
            super().__init__(device)
            self.xp, self.device = xp, "cpu"
'''


def network():
    return Sequential([Conv2D(4, 3, padding="same"), ReLU(), MaxPool2D(2), Flatten(), Dense(3)])


def forward_and_backward(backend, dtype="float64", compiled=lambda f: f):
    """Everything that a training step of a small network makes, on the host."""
    model = network()
    weights, stats = model.init((8, 8, 2), Stream(0, "weights"))
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(5, 8, 8, 2)), rng.normal(size=(5, 3))

    def step(weights, stats, x, dy):
        y, stats, backward = model.apply(weights, stats, x, Run(backend.ops, training=True))
        dx, gradients = backward(dy)
        return {"y": y, "dx": dx, **stats, **{f"d{k}": g for k, g in gradients.items()}}

    weights, stats = ({k: backend.asarray(v, dtype, copy=True) for k, v in t.items()} for t in (weights, stats))
    made = compiled(step)(weights, stats, backend.asarray(x, dtype), backend.asarray(dy, dtype))
    return {k: backend.to_numpy(v) for k, v in made.items()}


def test_shipped_backends_are_found():
    assert set(SHIPPED) <= set(xpnn.backend.names())
    for name in SHIPPED:
        cls = xpnn.backend.find(name)
        assert issubclass(cls, Backend)
        assert cls.name == name


def test_a_backend_passes_through():
    backend = xpnn.backend.get("numpy")
    assert xpnn.backend.get(backend) is backend
    with pytest.raises(BackendError, match="give one or the other"):
        xpnn.backend.get(backend, device="cpu")


@pytest.mark.parametrize(
    ("name", "near"), [("nunpy", "numpy"), ("NumPy", "numpy"), ("CuPy", "cupy"), ("pytorch", "torch"), ("xyz", None)]
)
def test_unknown_name(name, near):
    with pytest.raises(BackendError, match=f"there is no backend '{name}'; installed are .*cupy, .*numpy") as e:
        xpnn.backend.get(name)
    assert str(e.value).endswith(f"; did you mean {near!r}?" if near else "torch")
    assert "XPNN_BACKEND" not in str(e.value)


def test_environment_chooses(monkeypatch, install):
    install("stranger_backend", STRANGER, stranger="Stranger")
    monkeypatch.setenv("XPNN_BACKEND", "stranger")
    assert xpnn.backend.get().name == "stranger"
    assert xpnn.backend.get("numpy").name == "numpy"
    monkeypatch.setenv("XPNN_BACKEND", "")
    assert xpnn.backend.get().name == xpnn.backend.get("auto").name


def test_environment_is_named_in_errors(monkeypatch):
    monkeypatch.setenv("XPNN_BACKEND", "nunpy")
    with pytest.raises(
        BackendError, match=r"did you mean 'numpy'\? \(the environment variable XPNN_BACKEND is 'nunpy'"
    ):
        xpnn.backend.get()


def test_unusable_backend_says_why(install):
    install(
        "unusable_backend",
        """
        from xpnn.backend import Backend

        class Unusable(Backend):
            name = "unusable"

            @classmethod
            def why_unavailable(cls):
                return "there is no abacus; buy one"
        """,
        unusable="Unusable",
    )
    with pytest.raises(BackendError, match="backend 'unusable' cannot be used here: there is no abacus; buy one"):
        xpnn.backend.get("unusable")


REQUIRES = """
    from xpnn.backend import Backend

    class Needy(Backend):
        name = "needy"
        requires = {"json": "pip install json", "%s": "pip install it"}
"""


def test_what_it_requires_is_not_installed(install):
    install("needy_backend", REQUIRES % "no_such_library", needy="Needy")
    assert xpnn.backend.find("needy").why_unavailable() == (
        "no_such_library is not installed; install it: pip install it"
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_library_either", "ModuleNotFoundError: No module named 'no_such_library_either'"),
        ("raise OSError('no libfoo.so\\nsecond line')", "OSError: no libfoo.so"),
        ("raise RuntimeError", "RuntimeError"),
    ],
)
def test_what_it_requires_is_broken(install, source, said):
    install("broken_library", source)
    install("needy_backend", REQUIRES % "broken_library", needy="Needy")
    assert xpnn.backend.find("needy").why_unavailable() == (
        f"broken_library is installed but cannot be imported ({said}); install it anew: pip install it"
    )


def test_shipped_backends_say_how_to_install(monkeypatch):
    import sys

    for name, extra in {"torch": "torch", "jax": "jax", "strict": "test"}.items():
        library = {"strict": "array_api_strict"}.get(name, name)
        with monkeypatch.context() as m:
            m.setitem(sys.modules, library, None)
            reason = xpnn.backend.find(name).why_unavailable()
        assert reason == f'{library} is not installed; install it: pip install "xpnn[{extra}]"'


def test_numpy_has_one_device():
    assert xpnn.backend.get("numpy", "cpu").device == "cpu"
    with pytest.raises(BackendError, match="device 'cpu' only, not 'cuda'"):
        xpnn.backend.get("numpy", "cuda")


GPU = """
    from xpnn_numpy import NumPyBackend

    class GPU(NumPyBackend):
        name = "a_gpu"

        @classmethod
        def gpu(cls):
            return True

        @classmethod
        def why_unavailable(cls):
            return {reason!r}
"""

BROKEN = {
    "import": ("import no_such_library", "X"),
    "attribute": ("", "X"),
    "syntax": ("class", "X"),
    "no class": ("X = 1", "X"),
    "no backend": ("class X: pass", "X"),
    "gpu": (
        """
        from xpnn_numpy import NumPyBackend
        class X(NumPyBackend):
            name = "aa_broken"
            @classmethod
            def gpu(cls): raise OSError("libfoo")
            why_unavailable = gpu
        """,
        "X",
    ),
    "init": (
        """
        from xpnn_numpy import NumPyBackend
        class X(NumPyBackend):
            name = "aa_broken"
            def __init__(self, device=None): raise ZeroDivisionError("oh\\nno")
        """,
        "X",
    ),
    "runtime": (
        """
        from xpnn_numpy import NumPyBackend
        class X(NumPyBackend):
            name = "aa_broken"
            def __init__(self, device=None): raise RuntimeError("no such luck")
        """,
        "X",
    ),
    "no namespace": (
        """
        from xpnn.backend import Backend
        class X(Backend):
            name = "aa_broken"
        """,
        "X",
    ),
    "another name": (
        """
        from xpnn_numpy import NumPyBackend
        class X(NumPyBackend): pass
        """,
        "X",
    ),
    "no name": (
        """
        from xpnn.backend import Backend
        class X(Backend): pass
        """,
        "X",
    ),
    "describe": (
        """
        from xpnn_numpy import NumPyBackend
        class X(NumPyBackend):
            name = "aa_broken"
            def describe(self): return {"device": object()}
        """,
        "X",
    ),
}


def test_auto_takes_the_gpu(install):
    install("gpu_backend", GPU.format(reason=None), a_gpu="GPU")
    assert xpnn.backend.get("auto").name == "a_gpu"
    assert xpnn.backend.get().name == "a_gpu"


def test_auto_takes_numpy_where_the_gpu_cannot_be_used(install):
    install("gpu_backend", GPU.format(reason="out of order"), a_gpu="GPU")
    if xpnn.backend.find("cupy").why_unavailable() is None:
        pytest.skip("there is a GPU here")
    assert xpnn.backend.get("auto").name == "numpy"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_stranger_disturbs_nobody(install, kind):
    source, attribute = BROKEN[kind]
    install("broken_backend", source, aa_broken=attribute)  # first in the alphabet
    install("gpu_backend", GPU.format(reason=None), a_gpu="GPU")
    assert xpnn.backend.get("auto").name == "a_gpu"
    entries = {e["name"]: e for e in xpnn.backend.listing()}
    assert set(entries) >= {"aa_broken", "a_gpu", *SHIPPED}
    assert not entries["aa_broken"]["usable"]
    assert entries["aa_broken"]["reason"]
    assert "\n" not in entries["aa_broken"]["reason"]
    assert entries["aa_broken"]["describe"] is None
    assert entries["numpy"]["usable"]
    assert json.loads(json.dumps(list(entries.values()))) == list(entries.values())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("import", r"backend 'aa_broken' \(broken_backend:X\) cannot be imported: ModuleNotFoundError: No module"),
        ("attribute", r"cannot be imported: AttributeError: module 'broken_backend' has no attribute 'X'"),
        ("no class", r"\(broken_backend:X\) is no subclass of xpnn\.backend\.Backend"),
        ("init", r"the backend 'aa_broken' fails to start \(ZeroDivisionError: oh\): report this to its authors"),
        ("runtime", r"the backend 'aa_broken' fails to start \(RuntimeError: no such luck\): report this"),
        ("no namespace", r"the backend 'aa_broken' lacks self\.xp and self\.device: its __init__ must set them"),
        ("another name", r"'aa_broken' \(broken_backend:X\) calls itself 'numpy', .* name = \"aa_broken\""),
        ("no name", r"'aa_broken' \(broken_backend:X\) calls itself None, .* name = \"aa_broken\""),
        ("no backend", r"\(broken_backend:X\) is no subclass of xpnn\.backend\.Backend"),
    ],
)
def test_a_broken_stranger_asked_for_by_name(install, kind, message):
    source, attribute = BROKEN[kind]
    install("broken_backend", source, aa_broken=attribute)
    with pytest.raises(BackendError, match=message):
        xpnn.backend.get("aa_broken")


def test_two_backends_of_one_name(install):
    install("one_backend", STRANGER, stranger="Stranger")
    assert xpnn.backend.get("stranger").name == "stranger"
    install("other_backend", STRANGER, stranger="Stranger")
    with pytest.raises(BackendError, match="'stranger' is brought by one_backend:Stranger and by other_backend:"):
        xpnn.backend.get("stranger")
    assert xpnn.backend.names().count("stranger") == 1


def test_one_backend_installed_twice(install, tmp_path):
    install("one_backend", STRANGER, stranger="Stranger")
    again = tmp_path / "another_name-1.0.dist-info"
    again.mkdir()
    (again / "METADATA").write_text("Metadata-Version: 2.1\nName: another_name\nVersion: 1.0\n")
    (again / "entry_points.txt").write_text("[xpnn.backends]\nstranger = one_backend:Stranger\n")
    assert xpnn.backend.get("stranger").name == "stranger"


def test_listing():
    entries = xpnn.backend.listing()
    assert [e["name"] for e in entries] == sorted(e["name"] for e in entries)
    for entry in entries:
        assert list(entry) == ["name", "usable", "reason", "describe"]
        cls = xpnn.backend.find(entry["name"])
        assert entry["reason"] == cls.why_unavailable()
        assert entry["usable"] == (entry["reason"] is None)
        assert (entry["describe"] is not None) == entry["usable"]
        assert not entry["usable"] or entry["describe"]["name"] == entry["name"]
    assert json.loads(json.dumps(entries)) == entries


def test_a_stranger_is_found_listed_chosen_and_computes(install, monkeypatch):
    assert "stranger" not in xpnn.backend.names()
    install("stranger_backend", STRANGER, stranger="Stranger")
    assert "stranger" in xpnn.backend.names()
    entry = next(e for e in xpnn.backend.listing() if e["name"] == "stranger")
    assert entry["usable"]
    assert entry["describe"]["kernels"] == ["relu"]
    by_name = xpnn.backend.get("stranger")
    monkeypatch.setenv("XPNN_BACKEND", "stranger")
    import stranger_backend

    for backend in (by_name, xpnn.backend.get()):
        assert type(backend) is stranger_backend.Stranger
        stranger_backend.calls.clear()
        made, expected = forward_and_backward(backend), forward_and_backward(xpnn.backend.get("numpy"))
        assert stranger_backend.calls == ["relu"]
        assert made.keys() == expected.keys()
        for name, value in made.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-12, atol=1e-14, err_msg=name)
    assert xpnn.backend.get("auto").name != "stranger"


@pytest.mark.parametrize("where", ["strict:device1", "torch", "jax", "cupy"])
def test_shipped_backends_compute_what_numpy_computes(where):
    name, _, device = where.partition(":")
    if reason := xpnn.backend.find(name).why_unavailable():
        pytest.skip(reason)
    compiled = __import__("jax").jit if name == "jax" else lambda f: f  # eager JAX compiles each op by itself: 15 s
    made = forward_and_backward(xpnn.backend.get(name, device or None), "float32", compiled)
    for key, value in forward_and_backward(xpnn.backend.get("numpy")).items():
        np.testing.assert_allclose(made[key], value, rtol=1e-3, atol=1e-4, err_msg=key)


def test_kernels_can_be_left_out(install, monkeypatch):
    install("stranger_backend", STRANGER, stranger="Stranger")
    assert xpnn.backend.get("stranger").ops.replaced == ("relu",)
    monkeypatch.setenv("XPNN_KERNELS", "standard")
    backend = xpnn.backend.get("stranger")
    assert backend.ops.replaced == ()
    assert backend.describe()["kernels"] == []
    forward_and_backward(backend)
    import stranger_backend

    assert stranger_backend.calls == []


def test_other_words_in_the_environment_are_an_error(monkeypatch):
    monkeypatch.setenv("XPNN_KERNELS", "off")
    with pytest.raises(BackendError, match=r"XPNN_KERNELS='off' says nothing; it may be 'standard' .* 'plain'"):
        _ = xpnn.backend.get("numpy").ops


@pytest.mark.parametrize("name", ["rleu", "names", "__init__", "column_bytes"])
def test_a_kernel_for_no_op(install, name):
    install("stranger_backend", STRANGER.replace('{"relu": relu}', f'{{"{name}": relu}}'), stranger="Stranger")
    with pytest.raises(BackendError, match=f"backend 'stranger': a kernel for '{name}': there is no such op"):
        _ = xpnn.backend.get("stranger").ops


@pytest.mark.parametrize(
    "signature", ["(x)", "(ops, y)", "(ops, x, fast)", "(ops, x=None)", "(ops, *x)", "(ops, /, x)"]
)
def test_a_kernel_of_another_signature(install, signature):
    install("stranger_backend", STRANGER.replace("relu(ops, x)", f"relu{signature}"), stranger="Stranger")
    with pytest.raises(
        BackendError,
        match=re.escape(f"backend 'stranger': the kernel for 'relu' takes {signature}; expected (ops, x), as the"),
    ):
        _ = xpnn.backend.get("stranger").ops


def test_describe_where_proc_cannot_be_read(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError

    monkeypatch.setattr("builtins.open", refuse)
    processor = xpnn.backend._processor()
    assert processor.endswith(" cores")
    assert not processor.startswith(",")
