"""Answers to chapters/exercises/08_compare_mae.ipynb."""

RIGHT = {"learning_rate": "MAE", "checkpoint": "both", "evaluation": "I-JEPA", "runs": "MAE"}


def report(**lines: str) -> str:
    """An answer that names these lines of the logs."""
    named = {line.replace("_", " "): whom for line, whom in lines.items()}
    return f"return {named}"


ANSWERS = {
    "ex1": {
        "wrong": {
            "always in groups of 48 numbers (4 px patches)": """
                x = gather_tokens(patchify(images, patch), hidden)
                y = x.reshape(*x.shape[:2], -1, 48)
                return F.layer_norm(y, (48,)).flatten(2)
            """,
            "patches of 4 pixels, whatever is asked": """
                pixels = gather_tokens(patchify(images, 4), hidden)
                return F.layer_norm(pixels, pixels.shape[-1:])
            """,
            "added to the root": """
                pixels = gather_tokens(patchify(images, patch), hidden)
                return (pixels - pixels.mean(-1, keepdim=True)) / (pixels.std(-1, keepdim=True, correction=0) + 1e-5)
            """,
            "something smaller": """
                pixels = gather_tokens(patchify(images, patch), hidden)
                return F.layer_norm(pixels, pixels.shape[-1:], eps=1e-6)
            """,
            "not normalised": "return gather_tokens(patchify(images, patch), hidden)",
            "over the whole image": """
                x = patchify(images, patch)
                return gather_tokens(F.layer_norm(x, x.shape[1:]), hidden)
            """,
            "over the hidden patches together": """
                x = gather_tokens(patchify(images, patch), hidden)
                return F.layer_norm(x, x.shape[1:])
            """,
            "each channel by itself": """
                x = gather_tokens(patchify(images, patch), hidden).unflatten(2, (images.shape[1], -1))
                return F.layer_norm(x, x.shape[-1:]).flatten(2)
            """,
            "nan on flat patches": """
                x = gather_tokens(patchify(images, patch), hidden)
                return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)
            """,
            "all patches": """
                x = patchify(images, patch)
                return F.layer_norm(x, x.shape[-1:])
            """,
        },
        "right": {
            "by hand, with the sample's variance": """
                x = gather_tokens(patchify(images, patch), hidden)
                return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()
            """,
            "normalised before it is gathered": """
                x = patchify(images, patch)
                return gather_tokens(F.layer_norm(x, x.shape[-1:]), hidden)
            """,
        },
    },
    "ex2": {
        "wrong": {
            "twice the absolute error": """
                said, true = gather_tokens(predictions, hidden), gather_tokens(targets, hidden)
                return 2 * (said - true).abs().mean()
            """,
            "the square of the mean": """
                said, true = gather_tokens(predictions, hidden), gather_tokens(targets, hidden)
                return (said - true).mean().square()
            """,
            "the first image alone": "return F.mse_loss(predictions[0, hidden[0]], targets[0, hidden[0]])",
            "the first hidden patch alone": """
                first = hidden[:, :1]
                return F.mse_loss(gather_tokens(predictions, first), gather_tokens(targets, first))
            """,
            "gradients cut": """
                said, true = gather_tokens(predictions, hidden), gather_tokens(targets, hidden)
                return F.mse_loss(said.detach(), true)
            """,
            "six patches, whatever is given": """
                mask = torch.zeros(predictions.shape[:2]).scatter_(1, hidden, 1.0)
                return ((predictions - targets).square().mean(-1) * mask).sum() / 6
            """,
            "as it was: the visible ones": """
                mask = torch.ones(predictions.shape[:2]).scatter_(1, hidden, 0.0)
                error = (predictions - targets).square().mean(-1)
                return (error * mask).sum() / mask.sum()
            """,
            "all patches": "return F.mse_loss(predictions, targets)",
            "divided by all": """
                mask = torch.zeros(predictions.shape[:2]).scatter_(1, hidden, 1.0)
                return ((predictions - targets).square().mean(-1) * mask).mean()
            """,
            "a sum over the numbers of a patch": """
                error = (predictions - targets).square().sum(-1)
                return error.gather(1, hidden).mean()
            """,
            "the first image's patches for all": """
                return F.mse_loss(predictions[:, hidden[0]], targets[:, hidden[0]])
            """,
        },
        "right": {
            "the mask turned round": """
                mask = torch.zeros(predictions.shape[:2]).scatter_(1, hidden, 1.0)
                error = (predictions - targets).square().mean(-1)
                return (error * mask).sum() / mask.sum()
            """
        },
    },
    "ex3": {
        "wrong": {
            "all that differs": report(runs="MAE", evaluation="I-JEPA", targets="MAE", compute="MAE", machine="MAE"),
            "equal is fair": report(runs="MAE", evaluation="I-JEPA"),
            "more steps are an advantage": report(**RIGHT, compute="MAE"),
            "the machine matters": report(**RIGHT, machine="MAE"),
            "the method itself": report(**RIGHT, targets="I-JEPA"),
            "the test set favours one side": report(**{**RIGHT, "checkpoint": "MAE"}),
            "a probe is the easier evaluation": report(**{**RIGHT, "evaluation": "MAE"}),
            "a tuned rate is a leak": report(**{**RIGHT, "learning_rate": "both"}),
            "the best seed spoils both": report(**{**RIGHT, "runs": "both"}),
            "one forgotten": report(**{line: whom for line, whom in RIGHT.items() if line != "learning_rate"}),
            "names alone, as a set": 'return {"learning rate", "checkpoint", "evaluation", "runs"}',
        },
        "right": {"another order": report(**dict(reversed(RIGHT.items())))},
    },
    "ex4": {
        "wrong": {
            "b is certain": """
                gap, limit = (a.mean() - b.mean()).item(), 2 * (a.var() / len(a)).sqrt().item()
                return "cannot tell" if abs(gap) <= limit else "a" if gap > 0 else "b"
            """,
            "as many seeds on both sides": """
                gap, limit = (a.mean() - b.mean()).item(), 2 * ((a.var() + b.var()) / len(a)).sqrt().item()
                return "cannot tell" if abs(gap) <= limit else "a" if gap > 0 else "b"
            """,
            "the two errors added": """
                gap, errors = (a.mean() - b.mean()).item(), [(x.var() / len(x)).sqrt().item() for x in (a, b)]
                limit = 2 * sum(errors)
                return "cannot tell" if abs(gap) <= limit else "a" if gap > 0 else "b"
            """,
            "three standard errors": """
                gap, limit = (a.mean() - b.mean()).item(), 3 * (a.var() / len(a) + b.var() / len(b)).sqrt().item()
                return "cannot tell" if abs(gap) <= limit else "a" if gap > 0 else "b"
            """,
            "medians": """
                gap, limit = (a.median() - b.median()).item(), 2 * (a.var() / len(a) + b.var() / len(b)).sqrt().item()
                return "cannot tell" if abs(gap) <= limit else "a" if gap > 0 else "b"
            """,
            "the higher mean": 'return "a" if a.mean() > b.mean() else "b"',
            "the best seed": """
                if a.max() == b.max():
                    return "cannot tell"
                return "a" if a.max() > b.max() else "b"
            """,
            "spread of a seed, not of the mean": """
                gap, error = a.mean() - b.mean(), (a.var() + b.var()).sqrt()
                return "cannot tell" if gap.abs() <= 2 * error else "a" if gap > 0 else "b"
            """,
            "variance of a whole population": """
                error = (a.var(correction=0) / len(a) + b.var(correction=0) / len(b)).sqrt()
                gap = a.mean() - b.mean()
                return "cannot tell" if gap.abs() <= 2 * error else "a" if gap > 0 else "b"
            """,
            "one standard error": """
                gap, error = a.mean() - b.mean(), (a.var() / len(a) + b.var() / len(b)).sqrt()
                return "cannot tell" if gap.abs() <= error else "a" if gap > 0 else "b"
            """,
            "only a can win": """
                gap, error = a.mean() - b.mean(), (a.var() / len(a) + b.var() / len(b)).sqrt()
                return "a" if gap > 2 * error else "cannot tell"
            """,
        },
        "right": {
            "compared as squares": """
                gap = a.mean() - b.mean()
                if gap**2 <= 4 * (a.var() / len(a) + b.var() / len(b)):
                    return "cannot tell"
                return "ab"[int(gap < 0)]
            """
        },
    },
}
