"""Answers to chapters/exercises/11_use_your_images.ipynb."""

NEAR = """
    x = {x}
    cosine = x[queries] @ x.T
    {out}
    return {returned}
"""

DIAGNOSE = """
    found = set()
    if {collapse}:
        found.add("collapse")
    peak = max(row["lr"] for row in rows)
    if sum({idle} for row in rows) > 0.3 * len(rows):
        found.add("schedule over early")
    left, before = 1.0, {begun}
    for row in rows:
        left *= {left}
        before = row["step"]
    if left > 0.1:
        found.add("momentum too high")
    return found
"""


def near(**changes: str) -> str:
    """The right search with some of its lines changed."""
    right = dict(x="F.normalize(features - features.mean(0), dim=1)", returned="cosine.topk(k, dim=1).indices")
    return NEAR.format(**{**right, "out": "cosine[torch.arange(len(queries)), queries] = -math.inf", **changes})


def diagnosis(**changes: str) -> str:
    """The right diagnosis with some of its rules changed."""
    right = dict(collapse='rows[-1]["std"] < 0.1', idle='row["lr"] < peak / 100', begun="0")
    return DIAGNOSE.format(**{**right, "left": 'row["momentum"] ** (row["step"] - before)', **changes})


def processors(**changes: tuple[float, float]) -> str:
    """The right processors with some of them changed."""
    right = dict(course=(0.5, 0.25), signed=(0.5, 0.5), plain=(0.0, 1.0), centred=(0.4, 0.2))
    names = dict(course="this course", signed="from -1 to 1", plain="from 0 to 1", centred="centred bytes")
    return f"return { ({names[k]: v for k, v in ({**right, **changes}).items()})!r}"


ANSWERS = {
    "ex1": {
        "wrong": {
            "half precision": """
                x = F.normalize(features - features.mean(0), dim=1)
                cosine = x[queries] @ x.T
                cosine = (x[queries].bfloat16() @ x.T.bfloat16()).float()
                cosine[torch.arange(len(queries)), queries] = -math.inf
                return cosine.topk(k, dim=1).indices
            """,
            "the features that were given are changed": """
                features -= features.mean(0)
                features /= features.norm(dim=1, keepdim=True)
                cosine = features[queries] @ features.T
                cosine[torch.arange(len(queries)), queries] = -math.inf
                return cosine.topk(k, dim=1).indices
            """,
            "sixty pictures, whatever is given": """
                x = F.normalize(features - features.mean(0), dim=1)
                cosine = (x[queries] @ x.T).masked_fill(torch.eye(60, dtype=torch.bool)[queries], -math.inf)
                return cosine.topk(k, dim=1).indices
            """,
            "all queries left out": """
                x = F.normalize(features - features.mean(0), dim=1)
                cosine = x[queries] @ x.T
                cosine[:, queries] = -math.inf
                return cosine.topk(k, dim=1).indices
            """,
            "the query is its own neighbour": near(out="pass"),
            "the first is dropped": near(out="pass", returned="cosine.topk(k + 1, dim=1).indices[:, 1:]"),
            "a cosine of 0 for the query": near(out="cosine[torch.arange(len(queries)), queries] = 0.0"),
            "the diagonal of a table that is not square": near(out="cosine.fill_diagonal_(-math.inf)"),
            "all that is as good as equal left out": near(out="cosine[cosine > 0.9999] = -math.inf"),
            "not centred": near(x="F.normalize(features, dim=1)"),
            "not scaled": near(x="features - features.mean(0)"),
            "scaled over the pictures": near(x="F.normalize(features - features.mean(0), dim=0)"),
            "by distance": """
                distance = torch.cdist(features[queries], features)
                distance[torch.arange(len(queries)), queries] = math.inf
                return distance.topk(k, dim=1, largest=False).indices
            """,
            "the least similar": near(
                out="cosine[torch.arange(len(queries)), queries] = math.inf",
                returned="cosine.topk(k, dim=1, largest=False).indices",
            ),
            "cosines for numbers": near(returned="cosine.topk(k, dim=1).values"),
        },
        "right": {
            "sorted": near(returned="cosine.argsort(dim=1, descending=True)[:, :k]"),
            "scatter": near(out="cosine = cosine.scatter(1, queries[:, None], -2.0)"),
            "a mask": """
                x = F.normalize(features - features.mean(0), dim=1)
                itself = torch.arange(len(x))[None] == queries[:, None]
                return (x[queries] @ x.T).masked_fill(itself, -math.inf).topk(k).indices
            """,
        },
    },
    "ex2": {
        "wrong": {
            "compared with the mean rate": """
                found = set()
                if rows[-1]["std"] < 0.1:
                    found.add("collapse")
                peak = sum(r["lr"] for r in rows) / len(rows)
                idle = sum(r["lr"] < peak / 100 for r in rows)
                if idle > 0.3 * len(rows):
                    found.add("schedule over early")
                left, before = 1.0, 0
                for r in rows:
                    left *= r["momentum"] ** (r["step"] - before)
                    before = r["step"]
                if left > 0.1:
                    found.add("momentum too high")
                return found
            """,
            "mean momentum of the rows for all steps": """
                found = set()
                if rows[-1]["std"] < 0.1:
                    found.add("collapse")
                peak = max(r["lr"] for r in rows)
                idle = sum(r["lr"] < peak / 100 for r in rows)
                if idle > 0.3 * len(rows):
                    found.add("schedule over early")
                left = (sum(r["momentum"] for r in rows) / len(rows)) ** rows[-1]["step"]
                if left > 0.1:
                    found.add("momentum too high")
                return found
            """,
            "approximation exp(-sum of 1 - m)": """
                found = set()
                if rows[-1]["std"] < 0.1:
                    found.add("collapse")
                peak = max(r["lr"] for r in rows)
                idle = sum(r["lr"] < peak / 100 for r in rows)
                if idle > 0.3 * len(rows):
                    found.add("schedule over early")
                left, before = 0.0, 0
                for r in rows:
                    left += (1 - r["momentum"]) * (r["step"] - before)
                    before = r["step"]
                left = math.exp(-left)
                if left > 0.1:
                    found.add("momentum too high")
                return found
            """,
            "collapse: lower than a fifth of the start": """
                found = set()
                if rows[-1]["std"] < 0.2 * rows[0]["std"]:
                    found.add("collapse")
                peak = max(r["lr"] for r in rows)
                idle = sum(r["lr"] < peak / 100 for r in rows)
                if idle > 0.3 * len(rows):
                    found.add("schedule over early")
                left, before = 1.0, 0
                for r in rows:
                    left *= r["momentum"] ** (r["step"] - before)
                    before = r["step"]
                if left > 0.1:
                    found.add("momentum too high")
                return found
            """,
            "share of steps instead of rows": """
                found = set()
                if rows[-1]["std"] < 0.1:
                    found.add("collapse")
                peak, idle, b = max(r["lr"] for r in rows), 0, 0
                for r in rows:
                    idle += (r["step"] - b) * (r["lr"] < peak / 100)
                    b = r["step"]
                if idle > 0.3 * rows[-1]["step"]:
                    found.add("schedule over early")
                left, before = 1.0, 0
                for r in rows:
                    left *= r["momentum"] ** (r["step"] - before)
                    before = r["step"]
                if left > 0.1:
                    found.add("momentum too high")
                return found
            """,
            "only rows in one run at the end count": """
                found = set()
                if rows[-1]["std"] < 0.1:
                    found.add("collapse")
                peak, idle = max(r["lr"] for r in rows), 0
                for r in reversed(rows):
                    if r["lr"] >= peak / 100:
                        break
                    idle += 1
                if idle > 0.3 * len(rows):
                    found.add("schedule over early")
                left, before = 1.0, 0
                for r in rows:
                    left *= r["momentum"] ** (r["step"] - before)
                    before = r["step"]
                if left > 0.1:
                    found.add("momentum too high")
                return found
            """,
            "the momentum of the row before": """
                found, peak = set(), max(row["lr"] for row in rows)
                if rows[-1]["std"] < 0.1:
                    found.add("collapse")
                if sum(row["lr"] < peak / 100 for row in rows) > 0.3 * len(rows):
                    found.add("schedule over early")
                left = 1.0
                for last, row in zip([rows[0] | dict(step=0), *rows], rows):
                    left *= last["momentum"] ** (row["step"] - last["step"])
                return found | ({"momentum too high"} if left > 0.1 else set())
            """,
            "below a hundredth of the first rate": diagnosis(idle='row["lr"] < 0.01 * rows[0]["lr"]'),
            "below a tenth of the peak": diagnosis(idle='row["lr"] < peak / 10'),
            "rows at one distance": diagnosis(left='row["momentum"] ** (rows[1]["step"] - rows[0]["step"])'),
            "collapse below 0.2": diagnosis(collapse='rows[-1]["std"] < 0.2'),
            "collapse in the second half": diagnosis(collapse='min(r["std"] for r in rows[len(rows) // 2 :]) < 0.1'),
            "the mean of the last three": diagnosis(collapse='sum(r["std"] for r in rows[-3:]) / 3 < 0.1'),
            "as it was": diagnosis(idle='row["lr"] == 0.0', left='row["momentum"]'),
            "only the momentum repaired": diagnosis(idle='row["lr"] == 0.0'),
            "only the schedule repaired": diagnosis(left='row["momentum"]'),
            "the first momentum for the whole run": diagnosis(left='rows[0]["momentum"] ** (row["step"] - before)'),
            "the last momentum for the whole run": diagnosis(left='rows[-1]["momentum"] ** (row["step"] - before)'),
            "the steps before the first row forgotten": diagnosis(begun='rows[0]["step"]'),
            "steps since the start, again and again": diagnosis(left='row["momentum"] ** row["step"]'),
            "twenty steps a row": diagnosis(left='row["momentum"] ** 20'),
            "a fixed smallest rate": diagnosis(idle='row["lr"] < 1e-5'),
            "all that is at the last rate": diagnosis(idle='row["lr"] <= rows[-1]["lr"]'),
            "collapse at any time": diagnosis(collapse='min(row["std"] for row in rows) < 0.1'),
            "a falling loss is healthy": diagnosis(collapse='rows[-1]["loss"] > rows[0]["loss"]'),
        },
        "right": {
            "in logarithms": """
                found, steps = set(), [0] + [row["step"] for row in rows]
                left = sum((b - a) * math.log(r["momentum"]) for a, b, r in zip(steps, steps[1:], rows, strict=False))
                peak = max(row["lr"] for row in rows)
                if rows[-1]["std"] < 0.1:
                    found |= {"collapse"}
                if sum(row["lr"] < 0.01 * peak for row in rows) / len(rows) > 0.3:
                    found |= {"schedule over early"}
                return found | ({"momentum too high"} if left > math.log(0.1) else set())
            """
        },
    },
    "ex3": {
        "wrong": {
            "three numbers for one": processors(course=((0.5,) * 3, (0.25,) * 3)),
            "in bytes": processors(course=(127.5, 63.75), centred=(102.0, 51.0)),
            "0.5 and 0.5 for everybody": processors(course=(0.5, 0.5)),
            "ImageNet's numbers": processors(course=(0.456, 0.224)),
            "multiplied instead of divided": processors(course=(0.5, 4.0), signed=(0.5, 2.0)),
            "mean and std in the wrong order": processors(course=(0.25, 0.5)),
            "the mean after the division": processors(course=(2.0, 0.25)),
            "a std of 0": processors(plain=(0.0, 0.0)),
            "from 0 to 1 is from -1 to 1": processors(plain=(0.5, 0.5)),
        },
        "right": {"worked out": processors(course=(127.5 / 255, 63.75 / 255), centred=(102 / 255, 51 / 255))},
    },
}
