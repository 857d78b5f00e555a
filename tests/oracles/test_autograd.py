"""Our own forward, differentiated by PyTorch and by JAX, against our own backward: random networks in float64."""

import numpy as np
import pytest
from harness import jax_x64
from networks import random_network

from xpnn import parity
from xpnn.ops import Ops


def network(seed):
    """A random network in training, over keyed normals, as a case."""
    model, in_shape = random_network(seed, spatial=1 + seed % 3)
    return parity.of_layer(f"network-{seed}", model, in_shape, training=True, samples=4)


def assert_same_gradients(case, outputs, gradients):
    """`gradients` by autograd, by name; ours on NumPy."""
    arrays = case.arrays()
    found, _ = case.call(Ops(), arrays)
    found = parity.results(case, Ops(), arrays, case.dy(found["y"].shape))
    largest = max(np.abs(a).max() for a in gradients.values())
    assert largest > 1e-3
    for name, y in outputs.items():
        np.testing.assert_allclose(found[name], y, rtol=1e-10, atol=1e-10 * np.abs(y).max())
    for name, gradient in gradients.items():
        np.testing.assert_allclose(found[f"d{name}"], gradient, rtol=0, atol=1e-10 * largest, err_msg=name)


def trained(case):
    """The arrays that backward has a gradient for."""
    return [name for name in case.data if name not in case.batched[1:] and "running_" not in name]


@pytest.mark.parametrize("seed", range(40))
def test_torch(seed):
    torch = pytest.importorskip("torch")
    case = network(seed)
    arrays = {name: torch.tensor(a) for name, a in case.arrays().items()}
    for name in trained(case):
        arrays[name].requires_grad_()
    outputs, _ = case.call(Ops(), arrays)
    outputs["y"].backward(torch.tensor(case.dy(outputs["y"].shape)))
    gradients = {name: arrays[name].grad for name in trained(case)}
    assert_same_gradients(
        case, *({k: v.detach().numpy() for k, v in part.items() if v is not None} for part in (outputs, gradients))
    )


@pytest.mark.parametrize("seed", range(2))
def test_jax(seed):
    jax = pytest.importorskip("jax")
    case = network(seed)
    with jax_x64():
        arrays = {name: jax.numpy.asarray(a) for name, a in case.arrays().items()}
        inputs = {name: arrays[name] for name in trained(case)}
        dy = jax.numpy.asarray(case.dy((4, *case.layer.shape(case.data["x"].shape[1:]))))

        def loss(inputs):
            outputs, _ = case.call(Ops(), arrays | inputs)
            return jax.numpy.sum(outputs["y"] * dy), outputs

        gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(inputs)
        assert_same_gradients(case, *({k: np.asarray(v) for k, v in part.items()} for part in (outputs, gradients)))
