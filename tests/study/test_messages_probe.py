"""Which probes of messages count."""

from __future__ import annotations

from rnnpar.study import messages_probe


def probes(monkeypatch) -> list[float]:
    """What messages.exchange costs in each probe from now on: 1, 2, 3 ... seconds."""
    asked: list[float] = []
    monkeypatch.setattr(
        messages_probe, "run_probe", lambda n: asked.append(len(asked) + 1.0) or {"exchange": [[64, asked[-1]]]}
    )
    return asked


def test_a_probe_counts_where_the_cores_were_whole_before_and_after(monkeypatch, cores):
    asked = probes(monkeypatch)
    cores.answers += [False, True, True, False, False, False]  # a no before is not asked again after
    assert messages_probe.typical_probe(2, 9) == {"exchange": [[64, 6.0]]}, "the median of the 2nd, 6th and 7th"
    assert len(asked) == 7


def test_all_probes_count_where_the_cores_never_were(monkeypatch, cores):
    asked = probes(monkeypatch)
    cores.answers += [False] * 100
    assert messages_probe.typical_probe(2, 9) == {"exchange": [[64, 5.0]]}
    assert len(asked) == 9
