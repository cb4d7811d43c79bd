"""The roofline of a step: the work of its kernels, counted, over the two ceilings of the machine, measured.

A kernel takes at least the longer of two times: its floating-point operations over the fastest product, and its bytes
over the fastest copy (Williams et al., "Roofline", 2009). Counted are the convolutions, normalisations and
activations, forward and backward: the operations by PyTorch's own formulas, the bytes of what each reads and writes,
saved tensors included, once each. Everything else (casts, the optimizer, the loss) is left out. A program that fuses
kernels, or whose tensors stay in a cache from one to the next, may be faster than the sum.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

COUNTED = ("convolution", "batch_norm", "relu", "threshold")


@dataclass(frozen=True)
class Kernel:
    name: str
    operations: int  # floating-point
    bytes: int


class KernelCounter(TorchDispatchMode):
    """While active, appends each convolution, normalisation and activation to ``kernels``."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> object:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        packet = function._overloadpacket
        name = packet.__name__
        if any(part in name for part in COUNTED):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            formula = flop_registry.get(packet)
            operations = formula(*args, **kwargs, out_val=result) if formula else 0
            self.kernels.append(Kernel(name, operations, sum(tensor.nbytes for tensor in tensors)))
        return result


def count_kernels(step: Callable[[], object]) -> list[Kernel]:
    with KernelCounter() as counter:
        step()
    return counter.kernels


@dataclass(frozen=True)
class Ceilings:
    """The machine's peak rates: operations a second at a precision, and bytes a second, read and written together."""

    operations: float
    bytes: float


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats + 2):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_ceilings(device: torch.device, precision: torch.dtype) -> Ceilings:
    """The fastest of some large products, and a copy many times as large as the caches; all of random data.

    Among the products is a convolution: on some CPUs, PyTorch's library for those is the faster one.
    """
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's convolutions do in float32
    sides = (4096, 8192) if device.type == "cuda" else (1024, 2048)
    rates = []
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
        rates.append(2 * side**3 / median_seconds(lambda a=a, b=b: a @ b, device))
    for channels, pixels in ((256, 32), (256, 8), (64, 32)):
        images = torch.randn(16, channels, pixels, pixels, device=device).to(precision)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(precision)
        images, weight = (value.contiguous(memory_format=torch.channels_last) for value in (images, weight))
        operations = 2 * 9 * channels * channels * 16 * pixels * pixels
        with torch.inference_mode():
            seconds = median_seconds(lambda i=images, w=weight: torch.conv2d(i, w, padding=1), device)
        rates.append(operations / seconds)
    source = torch.randn(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device)
    return Ceilings(max(rates), 2 * source.nbytes / seconds)


def shortest_seconds(kernels: list[Kernel], ceilings: Ceilings) -> float:
    """The sum over the kernels of the longer of their two times."""
    return sum(max(k.operations / ceilings.operations, k.bytes / ceilings.bytes) for k in kernels)
