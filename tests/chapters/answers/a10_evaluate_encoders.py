"""Answers to chapters/exercises/10_evaluate_encoders.ipynb."""

JUDGE = """
    held = {held}
    best = max(KS, key=lambda k: score({fitted}, {compared}, k))
    return score({bank}, {judged}, best), best
"""

F1 = """
    total = []
    for c in range(classes):
        hits = ((predicted == c) & (truth == c)).sum().item()
        false = ((predicted == c) & (truth != c)).sum().item()
        missed = ((predicted != c) & (truth == c)).sum().item()
        total.append({value})
    return {returned}
"""


def judge(**changes: str) -> str:
    """The right judgement with some of its parts changed."""
    right = dict(held="films % 5 == 0", fitted="x[~held], y[~held]", compared="x[held], y[held]")
    return JUDGE.format(**{**right, "bank": "x, y", "judged": "test, test_y", **changes})


def f1(
    value: str = "2 * hits / max(2 * hits + false + missed, 1)", returned: str = "100 * sum(total) / classes"
) -> str:
    """The right score with some of its parts changed."""
    return F1.format(value=value, returned=returned)


def predicted(**changes: object) -> str:
    """The right predictions with some of them changed."""
    right = {"std": 2.0, "labels": "1 a class", "draws": 32, "same draws": "smaller"}
    return f"return { ({**right, **{k.replace('_', ' '): v for k, v in changes.items()}})!r}"


ANSWERS = {
    "ex1": {
        "wrong": {
            "only the large k": """
                held = films % 5 == 0
                best = max(KS[3:], key=lambda k: score(x[~held], y[~held], x[held], y[held], k))
                return score(x, y, test, test_y, best), best
            """,
            "the largest": "return score(x, y, test, test_y, KS[-1]), KS[-1]",
            "other films": """
                held = films % 5 == 1
                best = max(KS, key=lambda k: score(x[~held], y[~held], x[held], y[held], k))
                return score(x, y, test, test_y, best), best
            """,
            "the first twenty films": """
                held = films < 20
                best = max(KS, key=lambda k: score(x[~held], y[~held], x[held], y[held], k))
                return score(x, y, test, test_y, best), best
            """,
            "the last three of KS": """
                held = films % 5 == 0
                best = max(KS[4:], key=lambda k: score(x[~held], y[~held], x[held], y[held], k))
                return score(x, y, test, test_y, best), best
            """,
            "a fifth of the frames": judge(held="torch.arange(len(x)) % 5 == 0"),
            "a random fifth": judge(held="torch.rand(len(x), generator=torch.Generator().manual_seed(0)) < 0.2"),
            "chosen on the test set": judge(fitted="x, y", compared="test, test_y"),
            "chosen on what is in the bank": judge(fitted="x, y", compared="x, y"),
            "the held-out films stay in the bank": judge(fitted="x, y"),
            "the wrong way round": judge(fitted="x[held], y[held]", compared="x[~held], y[~held]"),
            "the held-out films are lost": judge(bank="x[~held], y[~held]"),
            "the accuracy of the choice": judge(bank="x[~held], y[~held]", judged="x[held], y[held]"),
            "always one neighbour": "return score(x, y, test, test_y, 1), 1",
        },
        "right": {
            "in a loop": """
                held, best = films % 5 == 0, (-1.0, 0)
                for k in KS:
                    found = score(x[~held], y[~held], x[held], y[held], k)
                    if found > best[0]:
                        best = (found, k)
                return score(x, y, test, test_y, best[1]), best[1]
            """,
            "of equals the last": """
                held, best = films % 5 == 0, (-1.0, 0)
                for k in KS:
                    best = max(best, (score(x[~held], y[~held], x[held], y[held], k), k))
                return score(x, y, test, test_y, best[1]), best[1]
            """,
            "sets of films": """
                held = torch.tensor([int(film) in range(0, 1000, 5) for film in films])
                found = [score(x[~held], y[~held], x[held], y[held], k) for k in KS]
                k = KS[found.index(max(found))]
                return score(x, y, test, test_y, k), k
            """,
        },
    },
    "ex2": {
        "wrong": {
            "no guard against 0 / 0": """
                scores = []
                for c in range(classes):
                    hits = ((predicted == c) & (truth == c)).sum().item()
                    scores.append(2 * hits / (2 * hits + ((predicted == c) != (truth == c)).sum().item()))
                return 100 * sum(scores) / classes
            """,
            "an absent class counts as 1": """
                scores = []
                for c in range(classes):
                    hits = ((predicted == c) & (truth == c)).sum().item()
                    wrong = ((predicted == c) != (truth == c)).sum().item()
                    scores.append(2 * hits / (2 * hits + wrong) if hits + wrong else 1.0)
                return 100 * sum(scores) / classes
            """,
            "classes that are there": """
                scores = []
                for c in truth.unique().tolist():
                    hits = ((predicted == c) & (truth == c)).sum().item()
                    wrong = ((predicted == c) != (truth == c)).sum().item()
                    scores.append(2 * hits / max(2 * hits + wrong, 1))
                return 100 * sum(scores) / len(scores)
            """,
            "three classes, whatever is asked": """
                scores = []
                for c in range(3):
                    hits = ((predicted == c) & (truth == c)).sum().item()
                    wrong = ((predicted == c) != (truth == c)).sum().item()
                    scores.append(2 * hits / max(2 * hits + wrong, 1))
                return 100 * sum(scores) / 3
            """,
            "as it was: counts of all classes together": """
                hits = (predicted == truth).sum().item()
                return 100 * 2 * hits / (2 * hits + 2 * (len(truth) - hits))
            """,
            "weighted by the size of the class": f1(
                "2 * hits / max(2 * hits + false + missed, 1) * (hits + missed) / len(truth)", "100 * sum(total)"
            ),
            "precision": f1("hits / max(hits + false, 1)"),
            "recall": f1("hits / max(hits + missed, 1)"),
            "F1 of the means": f1(
                "(hits / max(hits + false, 1), hits / max(hits + missed, 1))",
                "(lambda p, r: 100 * 2 * p * r / (p + r) / classes)(*(sum(part) for part in zip(*total)))",
            ),
            "classes that were never named left out": f1(
                "2 * hits / (2 * hits + false + missed) if hits + false else None",
                "100 * sum(t for t in total if t is not None) / sum(t is not None for t in total)",
            ),
            "every other sample counts as a hit": f1("1 - (false + missed) / len(truth)"),
            "without the factor 2": f1("hits / max(hits + false + missed, 1)"),
            "a share": f1(returned="sum(total) / classes"),
            "no answer for an empty class": f1("2 * hits / (2 * hits + false + missed)"),
        },
        "right": {
            "from precision and recall": f1(
                "2 / ((hits + false) / hits + (hits + missed) / hits) if hits else 0.0",
            ),
            "scikit-learn": """
                from sklearn.metrics import f1_score
                return 100 * float(f1_score(truth, predicted, average="macro", labels=range(classes), zero_division=0))
            """,
        },
    },
    "ex3": {
        "wrong": {
            "divided by n": predicted(std=1.63),
            "the range": predicted(std=4.0),
            "twice as many draws": predicted(draws=16),
            "more labels, more spread": predicted(labels="100 a class"),
            "the same draws do not matter": predicted(same_draws="as large"),
            "two spreads add up": predicted(same_draws="larger"),
        },
        "right": {"from the formula": predicted(std=4**0.5)},
    },
}
