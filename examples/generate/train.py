"""Train a small network on Penstock's documentation, character by character, and export it.

    python train.py   # minutes; needs torch

Writes gru.onnx beside this file. Serving it needs no torch. The model takes a character's code and
what it remembers, N and N×128, and gives a score for each character that may follow, N×128, and
what it remembers from now on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
CODES = 128  # ASCII
SIZE = 128
STEPS = 1500
LENGTH = 128  # characters that a step of the training looks at
BATCH = 32


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(CODES, 32)
        self.gru = torch.nn.GRU(32, SIZE, batch_first=True)
        self.scores = torch.nn.Linear(SIZE, CODES)

    def forward(
        self, codes: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores for what follows each code (N×T×CODES), and the state (1×N×SIZE)."""
        hidden, state = self.gru(self.embedding(codes), state)
        return self.scores(hidden), state


class Step(torch.nn.Module):
    """One character for each of N texts: what is exported."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        gru = network.gru
        self.embedding, self.scores = network.embedding, network.scores
        self.cell = torch.nn.GRUCell(gru.input_size, SIZE)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.cell.load_state_dict({name: getattr(gru, f"{name}_l0") for name in names})

    def forward(
        self, codes: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.cell(self.embedding(codes), state)
        return self.scores(state), state


def train() -> Network:
    texts = (page.read_text() for page in sorted(DOCS.rglob("*.md")))
    # Only prose: tables and code would take all of so small a network.
    lines = [
        line
        for text in texts
        for line in text.splitlines()
        if len(line) > 60 and line[0].isalpha() and "|" not in line
    ]
    text = "\n".join(lines).encode("ascii", "ignore")
    codes = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    print(len(codes), "characters")
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, STEPS)
    for step in range(STEPS):
        starts = torch.randint(len(codes) - LENGTH - 1, (BATCH,)).tolist()
        pieces = torch.stack([codes[start : start + LENGTH + 1] for start in starts])
        scores, _ = network(pieces[:, :-1], torch.zeros(1, BATCH, SIZE))
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), pieces[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(step, f"{loss.item():.3f}", flush=True)
    return network


def main() -> None:
    network = train().eval()
    torch.onnx.export(
        Step(network).eval(),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2, SIZE)),
        str(HERE / "gru.onnx"),
        input_names=["code", "state"],
        output_names=["scores", "next_state"],
        dynamic_axes={name: {0: "n"} for name in ("code", "state", "scores", "next_state")},
        dynamo=False,
    )


if __name__ == "__main__":
    main()
