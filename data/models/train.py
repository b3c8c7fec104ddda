"""Trains the character networks of the study with PyTorch, and writes <name>.npz and models.json.

    pip install -e ".[train]"
    python data/models/train.py                 # all of them, about half an hour on one core
    python data/models/train.py kjv-h128        # one of them
    python data/models/train.py kjv-h128 --epochs 1 --out FOLDER      # a trial, kept apart

A network reads a character and predicts the next one. The training text is cut into parallel streams; each update
continues the hidden state that the last one left, but sends gradients back through its own steps only (truncated
back-propagation through time). The held-out text is used once, at the end, for the numbers in models.json.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rnnpar.network import RNN
from rnnpar.reference import reference
from rnnpar.study import corpus

HERE = Path(__file__).resolve().parent
EVALUATION = {"split": "held-out", "batch": 8, "steps": 1000}


@dataclass(frozen=True)
class Settings:
    """How one network is built and trained."""

    num_layers: int
    hidden_size: int
    epochs: int
    batch: int = 32  # streams side by side
    steps: int = 64  # characters an update sends gradients back through
    rate: float = 2e-3  # Adam's; rises over the first updates, then falls along a half cosine to nothing
    clip: float = 1.0  # the largest norm of a gradient
    seed: int = 1


NETWORKS = {
    "kjv-h128": Settings(num_layers=1, hidden_size=128, epochs=40, rate=6e-3),
    "kjv-h512": Settings(num_layers=1, hidden_size=512, epochs=12),
    "kjv-2x256": Settings(num_layers=2, hidden_size=256, epochs=16),
}


def streams(ids: np.ndarray, batch: int) -> torch.Tensor:
    """The ids as `batch` long streams side by side, (len(ids) // batch, batch)."""
    length = len(ids) // batch
    return torch.from_numpy(np.ascontiguousarray(ids[: batch * length].reshape(batch, length).T))


def rate_at(progress: float, highest: float) -> float:
    """The learning rate at `progress` from 0 to 1: a short linear rise, then a half cosine down to 0."""
    rise = 0.02
    if progress < rise:
        return highest * progress / rise
    return highest * 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))


class Progress:
    """Prints a line every few seconds: where the training is, how good, how long it still takes."""

    def __init__(self, name: str, epochs: int, total: int, every: float = 15.0) -> None:
        self.name, self.epochs, self.total, self.every = name, epochs, total, every
        self.begun = self.printed = time.monotonic()
        self.done, self.losses = 0, []

    def update(self, epoch: int, nats: float) -> None:
        self.done += 1
        self.losses.append(nats)
        now = time.monotonic()
        if now - self.printed < self.every and self.done < self.total:
            return
        left = (now - self.begun) * (self.total - self.done) / self.done
        bits = np.mean(self.losses) / math.log(2)
        print(f"{self.name}: epoch {epoch + 1} of {self.epochs}, {bits:.3f} bits a character, "
              f"{left / 60:.0f} min {left % 60:02.0f} s left", flush=True)  # fmt: skip
        self.printed, self.losses = now, []


def train(name: str, settings: Settings) -> tuple[RNN, float]:
    """The trained network, and the mean bits per character of its last epoch of training."""
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True)
    offsets = np.random.default_rng(settings.seed)
    size = len(corpus.alphabet())
    rnn = torch.nn.RNN(size, settings.hidden_size, settings.num_layers)
    linear = torch.nn.Linear(settings.hidden_size, size)
    parameters = [*rnn.parameters(), *linear.parameters()]
    adam = torch.optim.Adam(parameters)

    text = streams(corpus.encode(corpus.text("train")), settings.batch)
    updates = (len(text) - 1) // settings.steps - 1
    total = updates * settings.epochs
    progress = Progress(name, settings.epochs, total)
    for epoch in range(settings.epochs):
        hidden, nats = None, []
        first = int(offsets.integers(settings.steps))  # so that the cuts fall elsewhere in every epoch
        for update in range(updates):
            at = first + update * settings.steps
            ids, targets = text[at : at + settings.steps], text[at + 1 : at + 1 + settings.steps]
            states, hidden = rnn(torch.nn.functional.one_hot(ids, size).float(), hidden)
            hidden = hidden.detach()
            loss = torch.nn.functional.cross_entropy(linear(states).flatten(0, 1), targets.flatten())
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
            adam.param_groups[0]["lr"] = rate_at((epoch * updates + update) / total, settings.rate)
            adam.step()
            nats.append(loss.item())
            progress.update(epoch, nats[-1])
    return RNN.from_torch(rnn, linear), float(np.mean(nats)) / math.log(2)


def held_out_bits(net: RNN, batch: int, steps: int | None) -> float:
    """Bits per character that the float64 oracle reaches on `batch` sequences of held-out text, from h0 = 0."""
    x, targets = corpus.sequences(batch, steps, "held-out")
    return corpus.bits_per_character(reference(net, x)[0], targets)


def describe(name: str, net: RNN, settings: Settings, seconds: float, training_bits: float) -> dict:
    """What models.json says about a network."""
    arrays = [net.V, net.c, *(array for layer in net.layers for array in (layer.W, layer.U, layer.b))]
    return {
        "file": f"{name}.npz",
        "num_layers": net.num_layers,
        "hidden_size": net.hidden_size,
        "input_size": net.input_size,
        "output_size": net.output_size,
        "parameters": sum(array.size for array in arrays),
        "bits_per_character": held_out_bits(net, EVALUATION["batch"], EVALUATION["steps"]),
        "bits_per_character_all_held_out": held_out_bits(net, EVALUATION["batch"], None),
        "training": asdict(settings)
        | {"optimizer": "Adam", "last_epoch_bits": round(training_bits, 4)}
        | {"torch": torch.__version__, "threads": torch.get_num_threads(), "seconds": round(seconds)},
    }


def record(folder: Path, name: str, entry: dict) -> None:
    """Put a network's entry into models.json, beside those that are there."""
    path = folder / "models.json"
    known = json.loads(path.read_text())["models"] if path.exists() else {}
    known[name] = entry
    page = {
        "alphabet": corpus.alphabet(),
        "evaluation": EVALUATION
        | {
            "bits_per_character": "corpus.bits_per_character(y, targets), where "
            "x, targets = corpus.sequences(batch, steps, split) and y, h = rnnpar.reference(net, x)",
            "bits_per_character_all_held_out": "the same with steps=None: the whole held-out text in 8 sequences",
        },
        "models": {key: known[key] for key in sorted(known)},
    }
    path.write_text(json.dumps(page, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--epochs", type=int, help="train for this many epochs, in place of the network's own number")
    parser.add_argument("--rate", type=float, help="the highest learning rate, in place of the network's own")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder to write to (default: this program's)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NETWORKS):
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    overrides = {key: value for key in ("epochs", "rate") if (value := getattr(args, key)) is not None}
    if any(value <= 0 for value in overrides.values()) or args.threads < 1:
        parser.error("--epochs, --rate and --threads must be above 0")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or NETWORKS:
        settings = replace(NETWORKS[name], **overrides)
        begun = time.monotonic()
        net, training_bits = train(name, settings)
        seconds = time.monotonic() - begun
        net.save(args.out / f"{name}.npz")
        entry = describe(name, net, settings, seconds, training_bits)
        record(args.out, name, entry)
        print(f"{name}: {entry['bits_per_character']:.3f} bits a held-out character after {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
