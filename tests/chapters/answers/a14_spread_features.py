"""Answers to chapters/exercises/14_spread_features.ipynb."""

QUESTIONS = {
    "left": "lighter on the left than on the right?",
    "above": "lighter above than below?",
    "red": "more red than blue?",
    "light": "lighter than a middle grey?",
}


def statistics(order: str = "PQSRT", narrow: float = 4, normal: float = 1) -> str:
    """An answer to the first exercise."""
    return f"return {dict(order=order, narrow=narrow, normal=normal)}"


def views(left: str = "mirror, turn", above: str = "turn", red: str = "no colour", light: str = "light") -> str:
    """An answer to the last one, the ways separated by commas."""
    given = dict(left=left, above=above, red=red, light=light)
    return f"return { {QUESTIONS[name]: {*ways.split(', ')} - {''} for name, ways in given.items()} }"


HEAD = """
    t = torch.linspace(0, 5, 17)
    angle, normal = seen[..., None] * t, (-0.5 * t.square()).exp()
"""
MEND = "    gap = (angle.cos().mean(0) - normal).square() + angle.sin().mean(0).square()\n"
BACK = "    return (2 * len(seen) * torch.trapezoid(gap * normal, t)).mean()\n"
EACH = "    features = (features - features.mean(0)) / (features.std(0) + 1e-6)\n"
UNITS = "    seen = (seen - seen.mean(0)) / (seen.std(0) + 1e-6)\n"
PARTNER = "torch.arange(len(x)) ^ 1"
ASK = "    return F.cross_entropy(scores, torch.arange(len(x)) ^ 1)\n"
SEEN = "    seen = features @ directions\n"
UNIT = "    x = F.normalize(x, dim=1)\n"
SCORES = "    scores = (x @ x.T / temperature).masked_fill(torch.eye(len(x), dtype=torch.bool), -torch.inf)\n"

ANSWERS = {
    "ex1": {
        "wrong": {
            "one point is the worst": statistics("PQRTS"),
            "the number does not count": statistics("PQRST"),
            "the narrow ones alike, then the point": statistics("PRQST"),
            "place does not count": statistics("PQTSR"),
            "twice, as the root of four": statistics(narrow=2),
            "sixteen times": statistics(narrow=16),
            "the same, as a mean would be": statistics(narrow=1),
            "normal samples too": statistics(normal=4),
            "a fourth: errors average out": statistics(normal=0.25),
        },
        "right": {"as measured": statistics(narrow=3.9, normal=1.02)},
    },
    "ex2": {
        "wrong": {
            "only the standardising taken out": f"{SEEN}{HEAD}"
            "    gap = ((angle.cos() - normal).square() + angle.sin().square()).mean(0)\n" + BACK,
            "only the means taken first": f"{SEEN}{UNITS}{HEAD}{MEND}{BACK}",
            "still centred": f"{SEEN}    seen = seen - seen.mean(0)\n{HEAD}{MEND}{BACK}",
            "still divided": f"{SEEN}    seen = seen / (seen.std(0) + 1e-6)\n{HEAD}{MEND}{BACK}",
            "features standardised in place of projections": f"{EACH}{SEEN}{HEAD}{MEND}{BACK}",
            "sines forgotten": f"{SEEN}{HEAD}    gap = (angle.cos().mean(0) - normal).square()\n{BACK}",
            "means over directions": f"{SEEN}{HEAD}"
            "    gap = (angle.cos().mean((0, 1)) - normal).square() + angle.sin().mean((0, 1)).square()\n" + BACK,
            "a sum over directions": SEEN + HEAD + MEND + BACK.replace(".mean()", ".sum()"),
            "without the number of samples": SEEN + HEAD + MEND + BACK.replace("2 * len(seen)", "2"),
            "one side of the integral": SEEN + HEAD + MEND + BACK.replace("2 * len", "len"),
            "without the weight": SEEN + HEAD + MEND + BACK.replace("gap * normal", "gap"),
            "no gradient": SEEN.replace("features @", "features.detach() @") + HEAD + MEND + BACK,
        },
        "right": {
            "complex numbers": """
                t = torch.linspace(0, 5, 17)
                wave = torch.exp(1j * (features @ directions)[..., None] * t).mean(0)
                normal = torch.exp(-t * t / 2)
                return 2 * len(features) * torch.trapezoid((wave - normal).abs() ** 2 * normal, t).mean()
            """,
            "one direction after the other": """
                t = torch.linspace(0, 5, 17)
                normal, total = (-0.5 * t**2).exp(), 0.0
                for way in directions.T:
                    angle = torch.outer(features @ way, t)
                    gap = (angle.cos().mean(0) - normal) ** 2 + angle.sin().mean(0) ** 2
                    total = total + 2 * len(features) * torch.trapezoid(gap * normal, t)
                return total / directions.shape[1]
            """,
        },
    },
    "ex3": {
        "wrong": {
            "itself among the candidates": UNIT + ASK.replace("scores", "x @ x.T / temperature"),
            "partner half a batch on": UNIT + SCORES + ASK.replace(PARTNER, "torch.arange(len(x)).roll(len(x) // 2)"),
            "partner is the next row": UNIT + SCORES + ASK.replace(PARTNER, "torch.arange(len(x)).roll(-1)"),
            "not normalised": SCORES + ASK,
            "normalised over the batch": UNIT.replace("dim=1", "dim=0") + SCORES + ASK,
            "temperature multiplied": UNIT + SCORES.replace("/ temperature", "* temperature") + ASK,
            "no temperature": UNIT + SCORES.replace(" / temperature", "") + ASK,
            "candidates of the other kind only": """
                x = F.normalize(x, dim=1)
                scores = x[::2] @ x[1::2].T / temperature
                right = torch.arange(len(scores))
                return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
            """,
            "only first views ask": UNIT
            + SCORES
            + ASK.replace("(scores, ", "(scores[::2], ").replace(")) ^", "))[::2] ^"),
            "partner left out below the line": """
                x = F.normalize(x, dim=1)
                scores = x @ x.T / temperature
                n = torch.arange(len(x))
                others = scores.masked_fill(torch.eye(len(x), dtype=torch.bool), -torch.inf).index_put(
                    (n, n ^ 1), torch.tensor(-torch.inf)
                )
                return (others.logsumexp(1) - scores[n, n ^ 1]).mean()
            """,
            "a sum": UNIT + SCORES + ASK.replace("^ 1)", "^ 1, reduction='sum')"),
            "itself at zero instead of out": UNIT + SCORES.replace("-torch.inf", "0.0") + ASK,
            "in place on what was given": "    x /= x.norm(dim=1, keepdim=True)\n" + SCORES + ASK,
            "ten rows, whatever is given": UNIT + SCORES.replace("len(x)", "10") + ASK.replace("len(x)", "10"),
        },
        "right": {
            "put in the order of the chapter": """
                first, second = F.normalize(x, dim=1).unflatten(0, (-1, 2)).unbind(1)
                x = torch.cat([first, second])
                alike = x @ x.T / temperature
                alike.fill_diagonal_(-torch.inf)
                return F.cross_entropy(alike, torch.arange(len(x)).roll(len(first)))
            """,
            "by logarithms": """
                scores = F.cosine_similarity(x[:, None], x[None], dim=2) / temperature
                n = torch.arange(len(x))
                partner = n + 1 - 2 * (n % 2)
                out = torch.full_like(scores, 0.0).fill_diagonal_(-1e9)
                return ((scores + out).logsumexp(1) - scores[n, partner]).mean()
            """,
        },
    },
    "ex4": {
        "wrong": {
            "a mirror swaps above and below too": views(above="mirror, turn"),
            "a turn is left out": views(left="mirror"),
            "a turn changes sides only": views(above=""),
            "half a turn keeps left and right": views(left="mirror", above="turn"),
            "colour is brightness": views(light="light, no colour"),
            "light spoils every comparison": views(left="mirror, turn, light", above="turn, light"),
            "light spoils colour": views(red="no colour, light"),
            "colour stays in grey": views(red=""),
            "nothing is lost": views("", "", "", ""),
            "everything is": views(*["mirror, turn, no colour, light"] * 4),
        },
        "right": {
            "by the way": """
                lost = {
                    "mirror": ["lighter on the left than on the right?"],
                    "turn": ["lighter on the left than on the right?", "lighter above than below?"],
                    "no colour": ["more red than blue?"],
                    "light": ["lighter than a middle grey?"],
                }
                return {q: {way for way, asked in lost.items() if q in asked} for q in QUESTIONS}
            """
        },
    },
}
