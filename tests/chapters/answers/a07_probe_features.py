"""Answers to chapters/exercises/07_probe_features.ipynb."""

VOTE = """
    mean, classes = train.mean(0), int(train_labels.max()) + 1
    bank, queries = F.normalize(train - mean, dim=1), F.normalize(test - {test_mean}, dim=1)
    cosine, index = (queries @ bank.T).topk({k}, dim=1)
    votes = torch.zeros(len(test), classes).scatter_add_(1, train_labels[index], {weights})
    return votes.argmax(1)
"""


def vote(test_mean: str = "mean", k: str = "k", weights: str = "(cosine / temperature).exp()") -> str:
    """The right vote with some of its parts changed."""
    return VOTE.format(test_mean=test_mean, k=k, weights=weights)


PROBE = """
    numbers = {numbers}
    mean, std = numbers.mean(0), numbers.std(0).clamp_min(1e-6)
    x, x_test = (train - mean) / std, (test - mean) / std
    best = (-1.0, 0.0)
    for penalty in PENALTIES:
        classifier = fit_linear({fitted}, classes, penalty)
        best = max(best, (accuracy(classifier, {compared}), penalty))
    classifier = fit_linear({finally_fitted}, classes, best[1])
    return accuracy(classifier, x_test, test_labels), best[1]
"""


def probe(**changes: str) -> str:
    """The right probe with some of its parts changed."""
    right = dict(numbers="train", fitted="x[~held_out], train_labels[~held_out]", finally_fitted="x, train_labels")
    right["compared"] = "x[held_out], train_labels[held_out]"
    return PROBE.format(**{**right, **changes})


ANSWERS = {
    "ex1": {
        "wrong": {
            "absolute cosines": vote(weights="(cosine.abs() / temperature).exp()"),
            "classes hard-wired to 4": """
                mean, classes = train.mean(0), 4
                bank, queries = F.normalize(train - mean, dim=1), F.normalize(test - mean, dim=1)
                cosine, index = (queries @ bank.T).topk(k, dim=1)
                weights = (cosine / temperature).exp()
                return torch.zeros(len(test), classes).scatter_add_(1, train_labels[index], weights).argmax(1)
            """,
            "nine neighbours, whatever is asked": vote(k="9"),
            "one temperature": vote(weights="(cosine / 0.2).exp()"),
            "the features that were given are changed": vote().replace(
                "mean, classes", "train -= train.mean(0); mean, classes"
            ),
            "each set centred on its own mean": vote(test_mean="test.mean(0)"),
            "not weighted": vote(weights="torch.ones_like(cosine)"),
            "weighted by the cosine times the temperature": vote(weights="(cosine * temperature).exp()"),
            "one neighbour": vote(k="1"),
            "not centred": """
                classes = int(train_labels.max()) + 1
                cosine, index = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(k, dim=1)
                weights = (cosine / temperature).exp()
                return torch.zeros(len(test), classes).scatter_add_(1, train_labels[index], weights).argmax(1)
            """,
            "by distance": """
                classes = int(train_labels.max()) + 1
                distance, index = torch.cdist(test, train).topk(k, dim=1, largest=False)
                weights = (-distance / temperature).exp()
                return torch.zeros(len(test), classes).scatter_add_(1, train_labels[index], weights).argmax(1)
            """,
            "votes that overwrite each other": """
                mean, classes = train.mean(0), int(train_labels.max()) + 1
                bank, queries = F.normalize(train - mean, dim=1), F.normalize(test - mean, dim=1)
                cosine, index = (queries @ bank.T).topk(k, dim=1)
                weights = (cosine / temperature).exp()
                return torch.zeros(len(test), classes).scatter_(1, train_labels[index], weights).argmax(1)
            """,
        },
        "right": {
            "softmax": vote(weights="(cosine / temperature).softmax(1)"),
            "one-hot": """
                bank, queries = (F.normalize(x - train.mean(0), dim=1) for x in (train, test))
                cosine, index = (queries @ bank.T).topk(k, dim=1)
                return (F.one_hot(train_labels)[index] * (cosine / temperature).exp()[..., None]).sum(1).argmax(1)
            """,
        },
    },
    "ex2": {
        "wrong": {
            "only the large penalties": probe().replace("in PENALTIES", "in (1.0, 0.1)"),
            "standardised in place": probe().replace("(train - mean) / std, ", "train.sub_(mean).div_(std), "),
            "penalty fixed to 1.0": """
                mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
                x, x_test = (train - mean) / std, (test - mean) / std
                best = (0, 1.0)
                classifier = fit_linear(x, train_labels, classes, best[1])
                return accuracy(classifier, x_test, test_labels), best[1]
            """,
            "as it was": """
                both = torch.cat([train, test])
                mean, std = both.mean(0), both.std(0).clamp_min(1e-6)
                x, x_test = (train - mean) / std, (test - mean) / std
                best = (-1.0, 0.0)
                for penalty in PENALTIES:
                    classifier = fit_linear(x, train_labels, classes, penalty)
                    best = max(best, (accuracy(classifier, x_test, test_labels), penalty))
                return best
            """,
            "nothing is chosen": """
                mean, std = train.mean(0), train.std(0)
                classifier = fit_linear((train - mean) / std, train_labels, classes, 0.1)
                return accuracy(classifier, (test - mean) / std, test_labels), 0.1
            """,
            "not fitted again": probe(finally_fitted="x[~held_out], train_labels[~held_out]"),
            "fitted on the fifth": probe(
                fitted="x[held_out], train_labels[held_out]", compared="x[~held_out], train_labels[~held_out]"
            ),
            "not standardised": probe().replace("(train - mean) / std, (test - mean) / std", "train, test"),
            "the best on the test set is reported": """
                mean, std = train.mean(0), train.std(0)
                x, x_test, best, top = (train - mean) / std, (test - mean) / std, (-1.0, 0.0), 0.0
                for penalty in PENALTIES:
                    classifier = fit_linear(x[~held_out], train_labels[~held_out], classes, penalty)
                    best = max(best, (accuracy(classifier, x[held_out], train_labels[held_out]), penalty))
                    top = max(top, accuracy(fit_linear(x, train_labels, classes, penalty), x_test, test_labels))
                return top, best[1]
            """,
            "only the penalty repaired": probe(numbers="torch.cat([train, test])"),
            "only the standardisation repaired": probe(compared="x_test, test_labels"),
            "chosen on what was fitted": probe(fitted="x, train_labels", compared="x, train_labels"),
            "each set standardised by itself": probe(numbers="train").replace(
                "x_test = (train - mean) / std, (test - mean) / std",
                "x_test = (train - mean) / std, (test - test.mean(0)) / test.std(0)",
            ),
        },
        "right": {
            "with torch's own rounding": probe(),
            "chosen without the loop": """
                mean, std = train.mean(0), train.std(0)
                x = (train - mean) / std
                def score(penalty):
                    fitted = fit_linear(x[~held_out], train_labels[~held_out], classes, penalty)
                    return accuracy(fitted, x[held_out], train_labels[held_out])
                penalty = max(PENALTIES, key=score)
                classifier = fit_linear(x, train_labels, classes, penalty)
                return accuracy(classifier, (test - mean) / std, test_labels), penalty
            """,
        },
    },
    "ex3": {
        "wrong": {
            "random is chance": """
                return {"random linear": "chance", "better under linear": "pixels", "better under kNN": "pixels"}
            """,
            "pixels always win": """
                return {"random linear": "more", "better under linear": "pixels", "better under kNN": "pixels"}
            """,
            "networks always win": """
                network = "random encoder"
                return {"random linear": "more", "better under linear": network, "better under kNN": network}
            """,
        },
    },
}
