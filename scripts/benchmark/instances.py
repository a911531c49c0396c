"""Memory of idle servers of ResNet-18 on the CPU, by instances, in threads and in processes."""

from __future__ import annotations

from pathlib import Path

from figures import Figure, say
from resnet import exported
from servers import penstock, pss

PART = "instances"
EXECUTORS = ("thread", "process")
COUNTS = (1, 2, 4)
NODE = """
[resnet18]
backend = "{backend}"
model = "resnet18.onnx"
mean = "123.675, 116.28, 103.53"
std = "58.395, 57.12, 57.375"
max = "8x3x224x224"
executor = "{executor}"
instance_num = {count}
"""
MOST_MB = {("thread", 2): 300.0, ("thread", 4): 400.0, ("process", 4): 800.0}


def measure(quick: bool) -> list[Figure]:
    figures = []
    with exported() as folder:
        for backend in ("OnnxTensor",) if quick else ("OnnxTensor", "OpenvinoTensor"):
            for executor in EXECUTORS:
                for count in COUNTS:
                    path = folder / "instances.toml"
                    path.write_text(NODE.format(backend=backend, executor=executor, count=count))
                    with penstock(path) as server:
                        sizes = [pss(process) for process in (server.pid, *_children(server.pid))]
                    what = f"{backend}, {count} in {executor}: PSS after warm-up"
                    note = f"the server's {sizes[0]:.0f} MB"
                    most = MOST_MB.get((executor, count)) if backend == "OnnxTensor" else None
                    figures.append(Figure(PART, what, sum(sizes), "MB", most=most, note=note))
                    say(f"{PART}: {what} {sum(sizes):.0f} MB")
    return figures


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
