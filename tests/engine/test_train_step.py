"""The step against the same arithmetic written out in PyTorch."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.engine.train_step import TrainStep, mix_seed

from .small_model import Model, batches, run


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_equals_plain_pytorch(max_norm: float) -> None:
    model, plain = Model(), Model()
    step = TrainStep(model, batches(), torch.optim.SGD(model.parameters(), 0.1), max_norm=max_norm)
    storage = run(step, range(4))
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for batch in batches():
        optimizer.zero_grad()
        sum(plain(batch).values()).backward()
        norm = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
        if max_norm:
            assert norm > max_norm, "the case does not clip"
            for p in plain.parameters():
                p.grad *= max_norm / (norm + 1e-6)
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert storage.history("grad_norm").latest() == pytest.approx(norm.item(), rel=1e-5)


def test_random_numbers_depend_on_the_iteration_alone() -> None:
    whole, resumed = Model(), Model()
    run(TrainStep(whole, batches(), torch.optim.SGD(whole.parameters(), 0.1), seed=3), range(4))
    later = TrainStep(resumed, batches(), torch.optim.SGD(resumed.parameters(), 0.1), seed=3)
    torch.rand(17)
    run(later, range(2, 4))
    assert resumed.drawn == whole.drawn[2:]
    assert len(set(whole.drawn)) == 4


def test_state_continues_an_optimizer_with_momentum() -> None:
    model = Model()
    step = TrainStep(model, batches(), torch.optim.Adam(model.parameters(), 0.1))
    run(step, range(2))
    other = Model()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed = TrainStep(other, batches()[2:], torch.optim.Adam(other.parameters(), 0.1))
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))
    run(step, range(2, 4))
    run(resumed, range(2, 4))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loader_is_started_at_the_first_step() -> None:
    started = []

    def stream():
        started.append(True)
        yield from itertools.repeat(torch.ones(2, 4))

    class Loader:
        def __iter__(self):
            return stream()

    model = Model()
    step = TrainStep(model, Loader(), torch.optim.SGD(model.parameters(), 0.1))
    assert not started
    run(step, range(1))
    assert started


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_accumulated_batches_equal_the_large_batch(kind: type) -> None:
    generator = torch.Generator().manual_seed(1)
    small = [torch.randn(2, 4, generator=generator) for _ in range(9)]
    large = [torch.cat(small[k : k + 3]) for k in range(0, 9, 3)]
    ours, theirs = Model(), Model()
    with_small = run(
        TrainStep(ours, small, kind(ours.parameters(), 0.01), accumulate=3, max_norm=0.5), range(3)
    )
    with_large = run(
        TrainStep(theirs, large, kind(theirs.parameters(), 0.01), max_norm=0.5), range(3)
    )
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    for name in ("total_loss", "loss_a", "loss_b", "grad_norm"):
        ours_logged, theirs_logged = (x.history(name).values() for x in (with_small, with_large))
        assert [i for _, i in ours_logged] == [0, 1, 2]
        np.testing.assert_allclose(ours_logged, theirs_logged, rtol=1e-5)


def cells(seed: int) -> dict:
    """An image of six cells, as the mapper gives it."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((64, 64), np.int32)
    for k in range(6):
        y, x = 4 + 28 * (k // 3), 2 + 20 * (k % 3)
        labels[y : y + 12 + seed, x : x + 14] = k + 1
    image = torch.from_numpy(rng.integers(0, 255, (3, 64, 64)).astype(np.uint8))
    instances = build_instances([labels], [0], {0: np.arange(1, 7)}, (64, 64))
    return {"image": image, "instances": instances, "height": 64, "width": 64, "file_name": "x"}


def test_a_detectors_accumulated_gradient_is_that_of_the_large_batch(
    monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    """With no BatchNorm, and samples of a fixed number an image that no seed chooses."""
    cfg = load_config(
        repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml",
        [
            *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN"),
            *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
        ],
    )
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: torch.arange(n, device=device))
    torch.manual_seed(0)
    ours = build_model(cfg)
    theirs = copy.deepcopy(ours)
    images = [cells(1), cells(2)]
    for model, stream, accumulate in ((ours, [[x] for x in images], 2), (theirs, [images], 1)):
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        run(TrainStep(model, stream, optimizer, accumulate=accumulate), range(1))
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (ours, theirs)]
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()
    assert gradients[0].count_nonzero() > 0.5 * len(gradients[0])


def test_gradients_travel_once_an_update(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        model = Model()
        ddp = DistributedDataParallel(model)
        travels = []

        def count(_, bucket):
            travels.append(bucket.buffer().clone())
            future: torch.futures.Future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        ddp.register_comm_hook(None, count)
        run(
            TrainStep(ddp, batches(), torch.optim.SGD(ddp.parameters(), 0.1), accumulate=2),
            range(2),
        )
    finally:
        torch.distributed.destroy_process_group()
    assert len(travels) == 2
    plain = Model()
    run(
        TrainStep(plain, batches(), torch.optim.SGD(plain.parameters(), 0.1), accumulate=2),
        range(2),
    )
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


TWO_RANKS = """
import sys
import torch
from detectron2.utils.events import EventStorage
from cellseg_d2.engine.rank_process import end_process
from cellseg_d2.engine.train_step import TrainStep
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
class Losses(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
    def forward(self, batch):
        return {"loss": self.linear(torch.tensor([[s["x"]] for s in batch])).square().mean()}
x = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, float("nan"), 8.0]][rank]
batches = [[{"x": v, "file_name": f"{v:g}.tif"}] for v in x]
model = torch.nn.parallel.DistributedDataParallel(Losses())
optimizer = torch.optim.SGD(model.parameters(), 0.001)
step = TrainStep(model, batches, optimizer, accumulate=2, rank=rank)
with EventStorage() as storage:
    step.run_step()
    print("weight", model.module.linear.weight.item(), model.module.linear.bias.item())
    if rank == 0:
        print("loss", storage.history("total_loss").latest())
    step.iter = storage.iter = 1
    try:
        step.run_step()
    except FloatingPointError as error:
        print(error)
        print("stopped")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
end_process()
"""


@pytest.mark.slow
def test_two_ranks_share_the_update_and_stop_together(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "program.py").write_text(TWO_RANKS)
    command = [sys.executable, str(tmp_path / "program.py")]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            env={**os.environ, "PYTHONPATH": str(repository)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    torch.manual_seed(0)
    linear = torch.nn.Linear(1, 1)
    loss = linear(torch.tensor([[1.0], [2.0], [5.0], [6.0]])).square().mean()
    loss.backward()
    torch.optim.SGD(linear.parameters(), 0.001).step()
    for output in outputs:
        word, weight, bias = output[0].split()
        assert word == "weight" and float(weight) == pytest.approx(linear.weight.item(), rel=1e-6)
        assert float(bias) == pytest.approx(linear.bias.item(), rel=1e-6)
        assert output[-1] == "stopped"
    assert float(outputs[0][1].split()[1]) == pytest.approx(loss.item(), rel=1e-6)
    # Rank 0 has the sound images, and says what rank 1 found: batch 2, position 2·2 + 1.
    told = "\n".join(outputs[0])
    assert "iteration 1: a loss is not finite\n  batch 2: loss nan\n    position 5: nan.tif" in told
    assert "3.tif" not in told


def test_activations_of_one_batch_are_gone_before_the_next() -> None:
    alive: list[weakref.ref] = []
    most = []

    class Counting(Model):
        def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            most.append(sum(ref() is not None for ref in alive))
            hidden = self.linear(batch)
            alive.append(weakref.ref(hidden))
            return {"loss": (hidden.exp() ** 2).mean()}

    model = Counting()
    step = TrainStep(model, batches(), torch.optim.SGD(model.parameters(), 1e-9), accumulate=4)
    run(step, range(1))
    assert most == [0, 0, 0, 0]


def test_seeds_and_positions_count_batches() -> None:
    model = Model()
    step = TrainStep(
        model, batches(), torch.optim.SGD(model.parameters(), 0.1), accumulate=2, seed=3
    )
    run(step, range(2))
    one_by_one = Model()
    run(
        TrainStep(one_by_one, batches(), torch.optim.SGD(one_by_one.parameters(), 0.1), seed=3),
        range(4),
    )
    assert model.drawn == one_by_one.drawn


@pytest.mark.parametrize("accumulate", [0, -1])
def test_an_update_needs_a_batch(accumulate: int) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match="SOLVER.ACCUMULATE is"):
        TrainStep(model, [], optimizer, accumulate=accumulate)


def test_the_host_asks_the_device_once_a_step() -> None:
    """``item`` and ``if tensor`` wait for a device each time; one ``tolist`` brings all scalars."""

    class CountScalars(TorchDispatchMode):
        scalars = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            CountScalars.scalars += "_local_scalar_dense" in str(func)
            return func(*args, **(kwargs or {}))

    model = Model()
    model.forward = lambda batch: {"loss": model.linear(batch).square().mean()}
    step = TrainStep(
        model, batches(), torch.optim.SGD(model.parameters(), 0.1), accumulate=2, max_norm=1.0
    )
    with CountScalars():
        run(step, range(2))
        assert CountScalars.scalars == 0
        torch.ones(()).item()
        assert CountScalars.scalars == 1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_only_float16_is_scaled(dtype: torch.dtype | None) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert not TrainStep(model, batches(), optimizer, amp=dtype).scaler.is_enabled()


GPU_MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.bfloat16),
        pytest.param("cuda", torch.bfloat16, marks=GPU_MARKS),
        pytest.param("cuda", torch.float16, marks=GPU_MARKS),
    ],
)
def test_mixed_precision_trains(device: str, dtype: torch.dtype) -> None:
    model = Model().to(device)
    stream = [batch.to(device) for batch in batches()]
    step = TrainStep(model, stream, torch.optim.SGD(model.parameters(), 1e-3), amp=dtype)
    assert step.scaler.is_enabled() == (dtype == torch.float16)
    seen = []
    model.linear.register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
    run(step, range(4))
    assert seen == [dtype] * 4
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_mixed_seeds_differ_and_repeat() -> None:
    seeds = {mix_seed(a, b, c) for a, b, c in itertools.product(range(5), repeat=3)}
    assert len(seeds) == 125
    assert mix_seed(1, 2, 3) == mix_seed(1, 2, 3)
