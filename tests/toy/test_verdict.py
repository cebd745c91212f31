from __future__ import annotations

import copy
import json
import re

import pytest

from toy_ijepa import verdict as words
from toy_ijepa.probing import summary


def probed(*linear, knn=None):
    knn = knn or linear
    return summary([dict(linear=a, knn=b, linear_last4=a + 3, knn_last4=b) for a, b in zip(linear, knn, strict=True)])


def metrics(steps=1200, test=4000, data="cifar10", **probes):
    """What the main job would write: probes by name, healthy diagnostics."""
    methods = [name for name in ("ijepa", "mae") if name in probes]
    seeds = len(probes[methods[0]]["runs"])
    return dict(
        data=data,
        pictures=dict(train=50_000, labelled=50_000, test=test),
        probes=probes,
        training={name: [dict(steps=steps)] * seeds for name in methods},
        diagnostics={name: [dict(std=0.4, rank=12.0, position=0.1)] * seeds for name in methods},
        settings=dict(size="tiny", image_size=32, patch=4, masks="multiblock", batch=64, lr=3e-3),
    )


REFERENCE = metrics(
    random=probed(41.0, 41.2, 41.4, knn=[32.0, 32.1, 32.2]),
    ijepa=probed(52.0, 52.4, 52.8, knn=[49.0, 49.3, 49.6]),
    mae=probed(52.2, 52.5, 52.8, knn=[44.0, 44.4, 44.8]),
)


def told(run, reference=None):
    return " ".join(words.verdict(run, reference))


def one_seed(linear, knn, **options):
    return metrics(
        random=probed(41.0, knn=[32.0]), ijepa=probed(linear, knn=[knn]), mae=probed(52.3, knn=[44.2]), **options
    )


def test_a_run_no_better_than_random_never_passes_as_a_success():
    said = told(one_seed(41.6, 32.4), REFERENCE)
    assert re.search(r"NOT A SUCCESS: I-JEPA is no better than the random encoder .*linear probe \+0\.6 ± \d", said)
    assert "I-JEPA has learned" not in said
    assert "MAE has learned" in said
    assert "Next: train longer, python -m toy_ijepa --data cifar10 --steps" in said
    worse = told(one_seed(35.0, 25.0))
    assert "NOT A SUCCESS: I-JEPA" in worse  # far from random, but below it


def test_one_probe_beyond_its_doubt_is_enough_to_have_learned():
    assert "I-JEPA has learned" in told(one_seed(41.1, 40.0))


def test_the_twin_is_named_ahead_behind_or_not_told_apart():
    said = told(one_seed(52.4, 49.1), REFERENCE)
    assert "linear probe: not told apart" in said
    assert "kNN: I-JEPA ahead (+4.9 ±" in said
    assert "linear probe: MAE ahead (-6.3 ±" in told(one_seed(46.0, 49.1), REFERENCE)


def test_differences_are_paired_by_seed():
    """Both methods swing together by ten points; their difference does not."""
    run = metrics(random=probed(20, 20, 20), ijepa=probed(40, 50, 60), mae=probed(36, 46.2, 55.8), test=10**6)
    found = words.gap(run, "ijepa", "mae", "linear")
    assert found.points == pytest.approx(4.0)
    assert found.doubt == pytest.approx(2 * 0.2 / 3**0.5, rel=0.1)
    assert found.sure


def test_one_seed_takes_the_spread_of_the_reference_and_the_test_set_counts():
    run = one_seed(52.4, 49.1)
    alone, known = words.gap(run, "ijepa", "mae", "linear"), words.gap(run, "ijepa", "mae", "linear", REFERENCE)
    assert alone.doubt == pytest.approx(2 * (2 * 0.5 * 0.5 / 4000) ** 0.5 * 100, rel=0.02)
    assert known.doubt > alone.doubt
    assert words.gap(one_seed(52.4, 49.1, test=100), "ijepa", "mae", "linear").doubt > 10


def test_a_run_like_the_reference_agrees_with_it():
    said = told(one_seed(52.0, 49.0), REFERENCE)
    assert (
        "The reference run of I-JEPA (3 seeds): linear probe 52.4 ± 0.4, kNN 49.3 ± 0.3. Yours agrees with it." in said
    )
    assert "Next: five times as long" in said


def test_why_it_falls_short_is_said():
    run = one_seed(44.0, 38.0, steps=300)
    run["settings"]["lr"] = 1e-4
    run["pictures"]["labelled"] = 500
    said = told(run, REFERENCE)
    for reason in (
        "300 steps instead of 1200",
        "--lr 0.0001 instead of 0.003",
        "500 labels for the probes instead of 50000",
    ):
        assert reason in said
    assert "nothing known here explains it; three seeds" in told(one_seed(44.0, 38.0), REFERENCE)


def test_collapse_is_named_with_what_to_try():
    run = one_seed(41.0, 32.0)
    run["diagnostics"]["ijepa"] = [dict(std=0.01, rank=1.1, position=0.9)]
    said = told(run, REFERENCE)
    assert "its features collapsed (std 0.01" in said
    assert "lost rank (1.1 directions" in said
    assert "--method ijepa-vc" in said


def test_without_reference_or_baselines_nothing_is_invented():
    run = one_seed(52.0, 49.0, data="folder:mine")
    assert "reference" not in told(run)
    assert words.reference_for("folder:mine") is None
    alone = copy.deepcopy(run)
    for name in ("random", "mae"):
        del alone["probes"][name]
    assert "I-JEPA has learned" not in told(alone)


def test_stored_references_hold_what_the_verdict_reads():
    for name in ("cifar10", "shapes:0.5"):
        found = words.reference_for(name)
        assert found is not None, name
        assert found["data"] == name
        assert len(found["probes"]["ijepa"]["runs"]) == 3
        assert "Yours agrees with it" in told(json.loads(json.dumps(found)), found)


def test_what_a_longer_run_reaches_comes_from_the_stored_ones():
    said = words.longer()
    for name in ("ijepa", "mae"):
        run = json.loads((words.RESULTS / f"cifar10-{name}.json").read_text())
        assert f"{run['probes'][name]['linear']:.1f}" in said
        assert name == "ijepa" or f"MAE after {run['training'][name][0]['steps']:,} steps" in said
