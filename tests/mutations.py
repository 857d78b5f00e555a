"""Does the suite notice when the code is wrong? `python tests/mutations.py [NAME …]`

Each mutation changes one place in a copy of the sources and runs the part of the suite that should see it, on
NumPy, against the copy: it must fail. On an unchanged copy the tests that failed must pass. Exit status 1 otherwise.
"""

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
COMPILED = ""  # kernels, as XPNN_KERNELS calls them
VALUES = "tests/ops/test_values.py"
GRADIENT = VALUES + "::test_gradient[{}]"
CASES = "tests/test_cases.py"
CASE = CASES + "::test_results[numpy-{}]"  # one alone, where all of them would be compiled for it
SHARED = "tests/backends/test_numpy_team.py::test_shared_work_gives_the_same_bits[{}]"
EXECUTOR = "tests/backends/test_numpy_executor.py"
RECORDING = "tests/backends/test_numpy_recording.py"
GRAPHS = "tests/backends/test_cupy_executor.py"
NETWORK = "tests/parity/test_network.py"

MUTATIONS = {  # what goes wrong: the tests that should see it, the file, the code, what it becomes
    "conv kernel flipped": (
        VALUES,
        "src/xpnn/ops/convolution.py",
        "    matrix = xp.reshape(weight, (groups, weight.shape[0] // groups, -1))  # (G, C_out/G, K·C/G)",
        "    matrix = xp.reshape(xp.flip(weight, axis=1), (groups, weight.shape[0] // groups, -1))",
    ),
    "conv weights never updated": (
        "tests/layers/test_layers.py",
        "src/xpnn/layers/conv.py",
        '{"weight": dweight}',
        '{"weight": dweight * 0}',
    ),
    "conv bias gradient dropped": (
        GRADIENT.format("conv-plain"),
        "src/xpnn/ops/convolution.py",
        "dbias = None if bias is None else ops.total(dy, tuple(range(dy.ndim - 1)))\n        return dx, dweight",
        "dbias = None if bias is None else 0 * ops.total(dy, tuple(range(dy.ndim - 1)))\n        return dx, dweight",
    ),
    "dense bias gradient dropped": (
        GRADIENT.format("dense-plain"),
        "src/xpnn/ops/linear.py",
        "else ops.total(d, 0)",
        "else 0 * ops.total(d, 0)",
    ),
    "ReLU mask forgotten": (
        GRADIENT.format("relu-plain"),
        "src/xpnn/ops/activation.py",
        "lambda dy: dy * xp.astype(y > 0, dy.dtype)",
        "lambda dy: dy",
    ),
    "tied maxima all get the gradient": (
        VALUES + "::test_first_maximum_gets_the_gradient",
        "src/xpnn/ops/pool.py",
        "hit = (x[inputs] == y[outputs]) & open_",
        "hit = x[inputs] == y[outputs]",
    ),
    "max-pool padded with 0": (
        VALUES + "::test_value_of_an_op[max_pool-padding-negative]",
        "src/xpnn/ops/pool.py",
        "    y = _first(xp, x, w)\n",
        "    y = _first(xp, x, w)\n    y = xp.clip(y, 0.0) if any(map(any, w.pads)) else y\n",
    ),
    "biased variance into the running one": (
        VALUES + "::test_value_of_an_op[batch_norm-training]",
        "src/xpnn/ops/norm.py",
        "(momentum * n / (n - 1)) * var",
        "momentum * var",
    ),
    "stride and dilation swapped": (
        VALUES,
        "src/xpnn/ops/convolution.py",
        "return window(op, x[1:-1], weight[1:-1], stride, padding, dilation)",
        "return window(op, x[1:-1], weight[1:-1], dilation, padding, stride)",
    ),
    "KH and KW swapped": (
        VALUES,
        "src/xpnn/ops/convolution.py",
        "return window(op, x[1:-1], weight[1:-1], stride",
        "return window(op, x[1:-1], weight[1:-1][::-1], stride",
    ),
    "a shortcut without gradient": (
        VALUES + "::test_joined_relu_is_one_after_the_other",
        "src/xpnn/ops/joined.py",
        "dshortcut[0] if dshortcut else None",
        "None",
    ),
    "a joined shortcut ends the way back": (
        "tests/train/test_lowering.py",
        "src/xpnn/train/lowering.py",
        "run.ops.add(dx, dshort)[0] if",
        "dx if",
    ),
    "the kernel's ReLU forgets the shortcut's block": (
        "tests/backends/test_numpy_tiles.py::test_relu_of_tiles",
        "backends/xpnn_numpy/kernels/joined.py",
        "np.add(part, shortcut[block], out=part)",
        "np.add(part, shortcut[: len(part), : part.shape[1]], out=part)",
    ),
    "compiled: the ReLU of tiles hides NaN": (
        "tests/backends/test_numpy_fast.py::test_relu_lets_nan_through",
        "backends/xpnn_numpy/fast/_winograd.py",
        'builder.fcmp_ordered("<=", a, zero)',
        'builder.fcmp_unordered("<=", a, zero)',
    ),
    "compiled: a tile adds the shortcut of another": (
        "tests/backends/test_numpy_fast.py::test_relu_of_responses[tiles-True-False-float32]",
        "backends/xpnn_numpy/fast/_winograd.py",
        "_places(builder, builder.gep(other, [to]), below, beside, 2)",
        "_places(builder, other, below, beside, 2)",
    ),
    "tied phases: the last gets the gradient": (
        VALUES + "::test_joined_is_one_after_the_other",
        "src/xpnn/ops/joined.py",
        "xp.astype(a >= b, prize.dtype)",
        "xp.astype(a > b, prize.dtype)",
    ),
    "tied phases in the kernel: the last gets the gradient": (
        CASE.format("float32-conv_pool-ties"),
        "backends/xpnn_numpy/kernels/joined.py",
        "left >= right",
        "left > right",
    ),
    "kernel not turned around for dx": (
        CASES,
        "backends/xpnn_numpy/kernels/convolution.py",
        "weight[around].swapaxes(0, -1))  # a",
        "weight.swapaxes(0, -1))  # a",
    ),
    "columns go back without the last tap": (
        VALUES,
        "src/xpnn/ops/columns.py",
        "in enumerate(_parts(w)):",
        "in enumerate(_parts(w)[:-1]):",
    ),
    "cuBLAS is told the factors the wrong way round": (
        "tests/backends/test_cupy_products.py",
        "backends/xpnn_cupy/products.py",
        "int(b.transposed), int(a.transposed)",
        "int(a.transposed), int(b.transposed)",
    ),
    "a graph is launched on the batch before": (
        GRAPHS,
        "backends/xpnn_cupy/executor.py",
        "self.inputs[name][...] = a",
        "self.inputs[name] = a",
    ),
    "what a graph leaves is not kept": (
        GRAPHS,
        "backends/xpnn_cupy/executor.py",
        "output = self.output.copy()",
        "output = self.output",
    ),
    "a graph recorded for another state": (
        GRAPHS,
        "backends/xpnn_cupy/executor.py",
        "any(a is not b for a, b in zip(held, self._state, strict=True))",
        "False",
    ),
    "a phase that the pool drops": (
        CASE.format("float32-conv_pool-one-channel"),
        "backends/xpnn_numpy/kernels/joined.py",
        "m // p * p for m, p",
        "m for m, p",
    ),
    "NumPy's taps share with the wrong inputs": (
        "tests/backends/test_numpy_taps.py",
        "backends/xpnn_numpy/kernels/_taps.py",
        "whole(taps_first).reshape",
        "whole(taps_first[::-1]).reshape",
    ),
    "the second of two pixels sees what the first does": (
        "tests/backends/test_numpy_taps.py",
        "backends/xpnn_numpy/kernels/_taps.py",
        "pair[1, ..., 1:, :] = weight",
        "pair[1, ..., :-1, :] = weight",
    ),
    "every other pixel of a row twice": (
        "tests/backends/test_numpy_runs.py",
        "backends/xpnn_numpy/kernels/_planes.py",
        "image[..., i :: self.step, 0]",
        "image[..., :: self.step, 0]",
    ),
    "the places of a band see the same pixels": (
        "tests/backends/test_numpy_bands.py",
        "backends/xpnn_numpy/kernels/_bands.py",
        "p + s * r for p, s, r",
        "p + 0 * s * r for p, s, r",
    ),
    "NumPy's tiles: the lower line with the wrong sign": (
        "tests/backends/test_numpy_tiles.py",
        "backends/xpnn_numpy/kernels/_tiles.py",
        "np.subtract(m[:, 1], m[:, 3], out=lower)",
        "np.add(m[:, 1], m[:, 3], out=lower)",
    ),
    "squares of which the image has one line too few": (
        "tests/backends/test_numpy_squares.py",
        "backends/xpnn_numpy/kernels/_squares.py",
        "// 2 + 1, (size - first + 1) // 2)",
        "// 2 + 1, (size - first) // 2)",
    ),
    "squares where there is a backward": (
        "tests/backends/test_numpy_squares.py",
        "backends/xpnn_numpy/kernels/convolution.py",
        "isinstance(windows, Tiles) and not ops.backward and squared(",
        "isinstance(windows, Tiles) and squared(",
    ),
    "a sparse gradient of the kernel in tiles": (
        "tests/backends/test_numpy_tiles.py::test_a_gradient_of_zeros_alone_is_zero",
        "backends/xpnn_numpy/kernels/joined.py",
        "of_columns(plain(windows), by_block",
        "of_columns(windows, by_block",
    ),
    "a meeting without the helpers' lanes": (
        "tests/backends/test_numpy_helpers.py::test_the_bits_of_threads",
        "backends/xpnn_numpy/executor.py",
        'added([*parts, *(part for helper in lent for part in helper.answer("parts")[0])])',
        'added([*parts, *(part for helper in lent for part in helper.answer("parts")[0][:-1])])',
    ),
    "what is told overwrites what was handed over": (
        "tests/backends/test_numpy_helpers.py::test_what_is_told_leaves_what_was_handed_over",
        "backends/xpnn_numpy/helpers.py",
        "self._send(pickle.dumps((what, None)))",
        "self.hand(what, what)",
    ),
    "a message is taken for one like the last": (
        "tests/backends/test_numpy_helpers.py::test_of_a_message_like_the_last_only_numbers_are_sent",
        "backends/xpnn_numpy/helpers.py",
        "if message != self.handed:",
        "if self.handed is None or message[1] != self.handed[1]:",
    ),
    "helpers go on with the weights that they have seen": (
        "tests/backends/test_numpy_helpers.py::test_the_bits_of_threads",
        "backends/xpnn_numpy/helpers.py",
        "[view[...] for view in views]",
        "views",
    ),
    "a piece that was dealt is another one": (
        "tests/backends/test_numpy_helpers.py::test_who_is_quicker_predicts_more",
        "backends/xpnn_numpy/helpers.py",
        "yield card[0]",
        "yield card[0] // 2 * 2",
    ),
    "the last line has no padding after it": (
        "tests/backends/test_numpy_tiles.py",
        "backends/xpnn_numpy/kernels/_in_place.py",
        "sums[end:] = 0",
        "sums[end:] = 1",
    ),
    "rows left over by the runs of a product": (
        "tests/backends/test_numpy_products.py",
        "backends/xpnn_numpy/kernels/_products.py",
        "    if cut < rows:\n        product +=",
        "    if cut < 0:\n        product +=",
    ),
    "windows beyond the end of a line have a gradient": (
        "tests/backends/test_numpy_tiles.py",
        "backends/xpnn_numpy/kernels/_tiles.py",
        "products[..., width:, :] = 0",
        "products[..., width:, :] = 1",
    ),
    "predictions keep what backward would need": (
        "tests/backends/test_numpy_kept.py::test_predictions_keep_nothing_from_block_to_block",
        "backends/xpnn_numpy/kernels/joined.py",
        "        if ops.backward:\n            won.append((block, ",
        "        if True:\n            won.append((block, ",
    ),
    "a small product by a transposed matrix makes many numbers": (
        "tests/backends/test_numpy_products.py",
        "backends/xpnn_numpy/kernels/_products.py",
        "return min(most, MOST_ACROSS) if",
        "return most if",
    ),
    "weights are prepared for another state": (
        EXECUTOR,
        "backends/xpnn_numpy/executor.py",
        "len(of) != len(last.of) or any(a is not b for a, b in zip(of, last.of, strict=True))",
        "of[0] is not last.of[0]",
    ),
    "a folded norm forgets its mean": (
        "tests/train/test_lowering.py",
        "src/xpnn/train/lowering.py",
        "in made else -mean",
        "in made else 0 * mean",
    ),
    "helpers predict with weights that are not folded": (
        "tests/backends/test_numpy_helpers.py::test_the_bits_of_threads",
        "backends/xpnn_numpy/executor.py",
        "helper.unseen(ready.version, *given)",
        'helper.unseen(ready.version, self._tree(state["weights"]), given[1])',
    ),
    "helpers predict with the weights of another state": (
        "tests/backends/test_numpy_helpers.py::test_weights_are_shown_once",
        "backends/xpnn_numpy/helpers.py",
        "if self.seen == version:",
        "if self.seen:",
    ),
    "compiled: runs of two are not added": (
        SHARED.format("conv-shapes5-options5"),
        "backends/xpnn_numpy/fast/_product.py",
        "for many in (8, 4, 2, 1):",
        "for many in (8, 4, 1):",
    ),
    "compiled: a tile's edge is read as it lies": (
        SHARED.format("conv-shapes0-options0"),
        "backends/xpnn_numpy/fast/_winograd.py",
        "(0 <= first + i < size) << i",
        "(first + i < size) << i",
    ),
    "compiled: the last of tied maxima wins": (
        CASE.format("float32-conv_pool-ties"),
        "backends/xpnn_numpy/fast/_responses.py",
        "right = (cd > ab) | (cd != cd)",
        "right = (cd >= ab) | (cd != cd)",
    ),
    "compiled: what ReLU cut off has a gradient": (
        CASE.format("float32-conv_pool-relu"),
        "backends/xpnn_numpy/fast/_responses.py",
        "place[k] = p if kept else loser",
        "place[k] = p",
    ),
    "compiled: what a vector spoilt is not written again": (
        CASE.format("float32-conv-many-channels"),
        "backends/xpnn_numpy/fast/_product.py",
        "for first in range(tiled(n, width) - width, -1, -width):",
        "for first in range(0, n, width):",
    ),
    "compiled: only the last block's gradient": (
        CASE.format("float32-conv-many-places"),
        "backends/xpnn_numpy/fast/_product.py",
        "builder.select(more, load(out, v), zero)",
        "zero",
    ),
    "compiled: the taps of a stride without the padding": (
        CASE.format("float64-conv-same-strided"),
        "backends/xpnn_numpy/fast/_windows.py",
        "if (first + before - t * d) % s == 0",
        "if (first - t * d) % s == 0",
    ),
    "compiled: the last row of tiles with the wrong sign": (
        "tests/backends/test_numpy_fast.py::test_tiles_give_the_plain_sum",
        "backends/xpnn_numpy/fast/_winograd.py",
        "outer - u[12 + t, j]",
        "outer + u[12 + t, j]",
    ),
    "compiled: the last strip reaches into the next image": (
        "tests/backends/test_numpy_fast.py::test_means_along_the_pixels",
        "backends/xpnn_numpy/fast/_planar.py",
        "min(top + at.lines, high)",
        "(top + at.lines)",
    ),
    "compiled: what ReLU behind a norm cut off is in its sums": (
        CASE.format("float32-batch_norm-training-relu"),
        "backends/xpnn_numpy/fast/norm.py",
        "                    a = a if y[i, j] > zero else zero\n                    sums",
        "                    sums",
    ),
    "compiled: only the last terms of a dense layer": (
        "tests/backends/test_numpy_fast.py::test_dense_in_panels[shape2-17-False-float32]",
        "backends/xpnn_numpy/fast/linear.py",
        "line[v] += product[v]",
        "line[v] = product[v]",
    ),
    "what the ReLU of a residual block cut off has a gradient": (
        GRADIENT.format("conv_relu-shortcut"),
        "src/xpnn/ops/activation.py",
        "        d = dy if through is None else through(dy)[0]\n",
        "        d = dy\n",
    ),
    "a norm forgets its ReLU when joined": (
        "tests/train/test_lowering.py",
        "src/xpnn/train/lowering.py",
        'class NormReLU(BatchNorm):\n    """Batch normalisation and the ReLU after it."""\n\n    relu = True',
        'class NormReLU(BatchNorm):\n    """Batch normalisation and the ReLU after it."""\n\n    relu = False',
    ),
    "batch norm of a lane by itself": (
        EXECUTOR,
        "backends/xpnn_numpy/lanes.py",
        "    for part, m in parts[1:]:",
        "    for part, m in parts[:0]:",
    ),
    "a lane's share of the gradient forgotten": (
        EXECUTOR,
        "backends/xpnn_numpy/executor.py",
        "np.add(flat, done[0], out=flat), new,",
        "done[0], new,",
    ),
    "ReLU dropped by the joined layer": (
        "tests/train/test_lowering.py",
        "src/xpnn/train/lowering.py",
        "relu = ReLU in kinds",
        "relu = kinds[0] is ReLU",
    ),
    "softmax gradient not divided by N": (
        "tests/train/test_executor.py",
        "src/xpnn/train/executor.py",
        "scale = 1 / divisor if divisor else 0.0",
        "scale = 1.0",
    ),
    "weight decay applied twice": (
        "tests/optim/test_optimizers.py",
        "src/xpnn/optim/optimizers.py",
        "weights - (lr * weight_decay) * weights",
        "weights - (2 * lr * weight_decay) * weights",
    ),
    "the last piece of a lane left out": (
        EXECUTOR,
        "backends/xpnn_numpy/executor.py",
        "            parts = list(pairwise(cuts[i]))",
        "            parts = list(pairwise(cuts[i]))[: max(1, len(cuts[i]) - 2)]",
    ),
    "a recording played without proof": (
        RECORDING + "::test_what_would_not_be_right_is_not_played",
        "backends/xpnn_numpy/recording.py",
        "return recording if all(_same(played, due) for played, due in results) else None",
        "return recording",
    ),
    "a recording over the weights of another one": (
        RECORDING + "::test_recordings_of_several_shapes_share_memory_and_harm_each_other_nowhere",
        "backends/xpnn_numpy/recording.py",
        "Room(recording, self.arena, place).array(self.array)",
        "recording.keep(self.array)",
    ),
    "an op of a recording loses its inputs before its backward": (
        RECORDING + "::test_steps_and_predictions_have_the_same_bits[own-1-float32]",
        "backends/xpnn_numpy/recording.py",
        "backwards[0](d, **wanted), dy, *args)",
        "backwards[0](d, **wanted), dy)",
    ),
    "sums of a recording begin where the last ones ended": (
        RECORDING + "::test_played_it_gives_what_the_function_gives",
        "backends/xpnn_numpy/recording.py",
        "            recording.add(_plain(kept).fill, 0)\n",
        "",
    ),
    "a gradient handed out that the next step overwrites": (
        RECORDING + "::test_a_gradient_is_its_callers_own",
        "backends/xpnn_numpy/executor.py",
        "return np.array(_sum(flats)), *rest",
        "return _sum(flats), *rest",
    ),
    "a layer's own fault taken for an inherited one": (
        NETWORK + "::test_float64_is_judged_in_its_own_units",
        "src/xpnn/parity/network.py",
        '"own" if own > most else',
        '"own" if own > 1e9 else',
    ),
    "choices that rounding turned are left in": (
        NETWORK + "::test_choices_turned_by_rounding_are_left_out_and_counted",
        "src/xpnn/parity/network.py",
        "keep[path] = ~out",
        "keep[path] = out | ~out",
    ),
    "the yardstick of a norm forgets what the mean does": (
        NETWORK,
        "src/xpnn/parity/closed.py",
        "of_normal = inverse * (size + mean(size)) + n * (1 + steep)",
        "of_normal = n",
    ),
    "the drift of trainings judged by the median alone": (
        "tests/parity/test_drift.py::test_a_fault_that_begins_late_is_refused",
        "src/xpnn/parity/drift.py",
        "self.median <= FACTOR and self.last <= FACTOR",
        "self.median <= FACTOR",
    ),
    "splits that tie with what was seen do not count": (
        "tests/parity/test_training.py",
        "src/xpnn/parity/training.py",
        "apart >= seen - slack",
        "apart > seen + slack",
    ),
    "a resumed epoch begins anew": (
        "tests/train/test_resume.py",
        "src/xpnn/train/fit.py",
        "return self.source.epoch(self._order, self.step)",
        "return self.source.epoch(self._order, 0)",
    ),
    "an interrupted epoch lends its order to the next": (
        "tests/train/test_resume.py::test_a_fit_after_an_interrupted_one_has_an_order_of_its_own",
        "src/xpnn/train/fit.py",
        '"order", str(self.trainer.epochs - 1))',
        '"order", str(len(self.trainer.history)))',
    ),
    "Ctrl-C while steps are added up counts them twice": (
        "tests/train/test_resume.py::test_an_interruption_at_any_line_loses_and_repeats_nothing",
        "src/xpnn/train/fit.py",
        "            self._sums, self._finite, self._waiting = sums, finite_sums, []",
        "            self._sums = sums\n            self._finite, self._waiting = finite_sums, []",
    ),
    "a checkpoint forgets the moments": (
        "tests/train/test_resume.py",
        "src/xpnn/train/checkpoint.py",
        '"moments": contents.moments}',
        '"moments": {}}',
    ),
    "a state after a failed step is kept": (
        "tests/train/test_resume.py::test_a_step_that_fails_itself_is_not_saved_as_if_it_were_done",
        "src/xpnn/train/callbacks.py",
        "if fit.between_steps and (",
        "if (",
    ),
    "the other mirror is not asked after a wrong hash": (
        "tests/data/test_fetch.py",
        "src/xpnn/data/fetch.py",
        "except Exception as e:  # refused",
        "except OSError as e:  # refused",
    ),
    "an archive may unpack past what it announces": (
        "tests/data/test_npz.py",
        "src/xpnn/data/_npz.py",
        "longer.file_size += 1",
        "longer.file_size += 0",
    ),
    "what was made of weights serves others at their address": (
        "tests/backends/test_numpy_kept.py::test_what_is_made_of_weights_is_made_once[plain-in tiles]",
        "src/xpnn/ops/_made.py",
        "self._made[key] = weights, make",
        "self._made[key] = None, make",
    ),
    "a damaged cache is not decoded again": (
        "tests/data/test_folder.py",
        "src/xpnn/data/_folder.py",
        "if old != place or not _kept(old):",
        "if old != place:",
    ),
    "labels of skipped images are kept": (
        "tests/data/test_folder.py",
        "src/xpnn/data/_folder.py",
        "        files = [file for file in files if file.path not in skipped]\n",
        "",
    ),
    "another file moves one to the other side of the split": (
        "tests/data/test_folder.py",
        "src/xpnn/data/_folder.py",
        '"held out", ascii(relative)',
        '"held out", ascii(relative) + str(len(names))',
    ),
    "the thread of streamed batches goes on": (
        "tests/data/test_batches.py",
        "src/xpnn/data/batches.py",
        "pool.shutdown(cancel_futures=True)",
        "pass",
    ),
    "stored images are brought in whole": (
        "tests/data/test_batches.py",
        "src/xpnn/data/batches.py",
        "return isinstance(images, np.memmap | Stored)",
        "return False",
    ),
    "augmentation is drawn by the step": (
        "tests/data/test_augment.py",
        "src/xpnn/train/fit.py",
        'Stream(trainer.seed, "augment"), trainer.samples',
        'Stream(trainer.seed, "augment"), trainer.step',
    ),
    "a step is replayed without its augmentation": (
        "tests/data/test_augment.py",
        "src/xpnn/train/fit.py",
        "first_not_finite(state, self.augmented(images), draws)",
        "first_not_finite(state, images, draws)",
    ),
    "images turn the other way": (
        "tests/data/test_augment.py",
        "src/xpnn/data/augment.py",
        "turn = np.deg2rad(degrees)",
        "turn = -np.deg2rad(degrees)",
    ),
    "the edges of a turned image are stretched": (
        "tests/data/test_augment.py",
        "src/xpnn/data/augment.py",
        "np.clip(at, -1, size)",
        "np.clip(at, 0, size)",
    ),
    "the parts of the images do not join": (
        "tests/layers/test_normalize.py",
        "src/xpnn/layers/normalize.py",
        "apart**2 * (count * len(rows) / total)",
        "0",
    ),
    "specks stretch the box of a digit": (
        "tests/data/test_picture.py::test_specks_do_not_stretch_the_box",
        "src/xpnn/data/picture.py",
        "    mask = _large_parts(mask)",
        "    mask = mask.copy()",
    ),
    "a digit is centred by its box": (
        "tests/data/test_picture.py::test_mnist_ink_is_20_high_with_its_mass_in_the_middle",
        "src/xpnn/data/picture.py",
        "round(middle - float((scaled.sum(1 - axis) * np.arange(n)).sum() / scaled.sum()))",
        "(2 * middle - n) // 2",
    ),
    "one bad picture passes unnoticed": ("tests/cli/test_predict.py", "src/xpnn/cli/predict.py", "failed += 1", "pass"),
    "the page forgets dilation": (
        "tests/pictures/test_explain.py::test_every_sum_of_the_page_is_what_the_network_computed[2D]",
        "src/xpnn/pictures/explain.html",
        "- o.before[i] + tap[i] * o.dilation[i]",
        "- o.before[i] + tap[i]",
    ),
    "the page's clicks are off": (
        "tests/pictures/test_explain.py::test_clicks_and_keys_choose_the_pixel_they_point_at",
        "src/xpnn/pictures/explain.html",
        "(event.clientX - box.left) / box.width * node.width",
        "(event.clientX - box.left) / box.width",
    ),
}


Mutation = tuple[str, str, str, str]


def main(names: list[str]) -> int:
    chosen = {name: MUTATIONS[name] for name in names or MUTATIONS}
    if not find_spec("numba"):  # nothing is compiled, so nothing can be noticed
        chosen = {name: row for name, row in chosen.items() if kernels_of(row) != COMPILED}
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["numpy", "pytest"])  # which take a second, and are not xpnn's
    results, passing = dict[str, tuple[str, str]](), dict[str, Any]()
    with fresh.Pool(2, maxtasksperchild=1) as pool:
        for kernels in (COMPILED, "plain"):  # what takes longest first: what nothing was changed of, beside the others
            rows = {name: row for name, row in chosen.items() if kernels_of(row) == kernels}
            results |= zip(rows, pool.map(caught_by, rows.values(), chunksize=1), strict=True)
            tests = {results[name][0] for name in rows} - {""}
            passing[kernels] = len(tests), pool.apply_async(passes, (tests, kernels))
        untouched = {kernels: (count, *done.get()) for kernels, (count, done) in passing.items()}
    for name in chosen:
        test, tail = results[name]
        print(f"ok   {name}: caught by {test}" if test else f"BAD  {name}: passes\n{tail}")
    for kernels, (count, good, tail) in untouched.items():
        which = f"with {'compiled' if kernels == COMPILED else kernels} kernels, nothing changed"
        print(f"ok   {which}: all {count} pass" if good else f"BAD  {which}\n{tail}")
    print(f"{sum(bool(test) for test, _ in results.values())} of {len(chosen)} mutations caught")
    return 0 if all(test for test, _ in results.values()) and all(good for _, good, _ in untouched.values()) else 1


def kernels_of(mutation: Mutation) -> str:
    """The kernels under test: but for code that is compiled NumPy's own will do, which take no time to compile."""
    return COMPILED if "/fast/" in mutation[1] else "plain"


def caught_by(mutation: Mutation) -> tuple[str, str]:
    """The first test that fails on a copy with the mutation, or an empty string and what pytest said."""
    tests, file, old, new = mutation
    with copied() as copy:
        text = (copy / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            return "", f"{file} holds {text.count(old)} times: {old}"
        (copy / file).write_text(text.replace(old, new), encoding="utf-8")
        status, tail = run(copy, ["-x", tests], kernels_of(mutation))
        failed = copy / "cache" / "v" / "cache" / "lastfailed"
        return (next(iter(json.loads(failed.read_text(encoding="utf-8")))) if status == 1 else ""), tail


def passes(tests: set[str], kernels: str) -> tuple[bool, str]:
    """Whether these tests pass on an unchanged copy, each without those before it, and what pytest said."""
    with copied() as copy:
        status, tail = run(copy, sorted(tests), kernels) if tests else (0, "")
        return status == 0, tail


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the sources, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("src", "backends"):
            shutil.copytree(ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("*.nb[ci]"))
        yield Path(folder)


def run(copy: Path, tests: list[str], kernels: str) -> tuple[int, str]:
    """Run tests against a copy, in this process, of which nothing else is asked: pytest's status, its last words."""
    paths = [str(copy / part) for part in ("src", "backends")]
    os.environ.update(
        PYTHONPATH=os.pathsep.join(paths), PYTHONDONTWRITEBYTECODE="1", XPNN_THREADS="1", XPNN_KERNELS=kernels
    )
    os.environ["NUMBA_OPT"] = "1"  # it takes longer to compile than to run
    sys.path[:0], sys.dont_write_bytecode = paths, True
    os.chdir(ROOT)
    given = ["-q", "--backend", "numpy", "-o", f"cache_dir={copy / 'cache'}", f"--basetemp={copy / 'temporary'}"]
    given += ["-p", "no:unraisableexception"]  # what a failed test left open is no error of pytest's, which is in here
    with redirect_stdout(StringIO()) as said:
        status = pytest.main([*given, *tests])
    return int(status), "\n".join(said.getvalue().splitlines()[-15:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
