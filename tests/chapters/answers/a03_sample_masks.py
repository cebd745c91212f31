"""Answers to chapters/exercises/03_sample_masks.ipynb."""

ANSWERS = {
    "ex1": {
        "wrong": {
            "same state for both draws": """
                a, b = grid[0] - size[0] + 1, grid[1] - size[1] + 1
                state = generator.get_state()
                top = torch.randint(0, a, (count,), generator=generator)
                generator.set_state(state)
                return top, torch.randint(0, b, (count,), generator=generator)
            """,
            "generator forgotten for the column only": """
                a, b = grid[0] - size[0] + 1, grid[1] - size[1] + 1
                return torch.randint(0, a, (count,), generator=generator), torch.randint(0, b, (count,))
            """,
            "column from a new generator with a fixed seed: the same columns in every batch": """
                a, b = grid[0] - size[0] + 1, grid[1] - size[1] + 1
                own = torch.Generator().manual_seed(0)
                return torch.randint(0, a, (count,), generator=generator), torch.randint(0, b, (count,), generator=own)
            """,
            "columns are not drawn: 0, 1, 2, ... in turn": """
                a, b = grid[0] - size[0] + 1, grid[1] - size[1] + 1
                return torch.randint(0, a, (count,), generator=generator), torch.arange(count) % b
            """,
            "randperm modulo places: a batch of one always gets 0": """
                a, b = grid[0] - size[0] + 1, grid[1] - size[1] + 1
                return torch.randperm(count, generator=generator) % a, torch.randperm(count, generator=generator) % b
            """,
            "places hard-wired to 4 and 5": """
                return tuple(torch.randint(0, n, (count,), generator=generator) for n in (4, 5))
            """,
            "a generator of its own": """
                generator = torch.Generator().manual_seed(0)
                top = torch.randint(0, grid[0] - size[0] + 1, (count,), generator=generator)
                return top, torch.randint(0, grid[1] - size[1] + 1, (count,), generator=generator)
            """,
            "the global generator": """
                top = torch.randint(0, grid[0] - size[0] + 1, (count,))
                return top, torch.randint(0, grid[1] - size[1] + 1, (count,))
            """,
            "one of the two without the generator": """
                top = torch.randint(0, grid[0] - size[0] + 1, (count,))
                return top, torch.randint(0, grid[1] - size[1] + 1, (count,), generator=generator)
            """,
            "bound exclusive": """
                top = torch.randint(0, grid[0] - size[0], (count,), generator=generator)
                left = torch.randint(0, grid[1] - size[1], (count,), generator=generator)
                return top, left
            """,
            "sticks out": """
                top = torch.randint(0, grid[0], (count,), generator=generator)
                left = torch.randint(0, grid[1], (count,), generator=generator)
                return top, left
            """,
            "one number for both": """
                u = torch.rand(count, generator=generator)
                return (u * (grid[0] - size[0] + 1)).long(), (u * (grid[1] - size[1] + 1)).long()
            """,
            "rounding: the ends come half as often": """
                top = (torch.rand(count, generator=generator) * (grid[0] - size[0])).round().long()
                left = (torch.rand(count, generator=generator) * (grid[1] - size[1])).round().long()
                return top, left
            """,
        },
        "right": {
            "rounded down": """
                top = (torch.rand(count, generator=generator) * (grid[0] - size[0] + 1)).long()
                left = (torch.rand(count, generator=generator) * (grid[1] - size[1] + 1)).long()
                return top, left
            """
        },
    },
    "ex2": {
        "wrong": {
            "aspect drawn evenly in its logarithm": """
                import math
                return uniform(0.15, 0.2, generator), math.exp(uniform(math.log(0.75), math.log(1.5), generator))
            """,
            "aspect from a short list": """
                aspects = torch.linspace(0.75, 1.5, 16)
                return uniform(0.15, 0.2, generator), aspects[torch.randint(16, (), generator=generator)].item()
            """,
            "aspect of a random side, then turned at random (h/w or w/h)": """
                a = uniform(1.0, 1.5, generator)
                return uniform(0.15, 0.2, generator), a if uniform(0, 1, generator) < 0.5 else max(1 / a, 0.75)
            """,
            "the generator ignored": "return 0.15 + 0.05 * torch.rand(()).item(), 0.75 + 0.75 * torch.rand(()).item()",
            "one number folded: no correlation, and yet one number": """
                u = torch.rand((), generator=generator).item()
                return 0.15 + 0.05 * u, 0.75 + 0.75 * abs(2 * u - 1)
            """,
            "only two shapes": """
                u, v = torch.rand(2, generator=generator).tolist()
                return 0.15 + 0.05 * u, 0.75 if v < 0.5 else 1.5
            """,
            "never the largest": """
                u, v = torch.rand(2, generator=generator).tolist()
                return 0.15 + 0.03 * u, 0.75 + 0.75 * v
            """,
            "never the tallest": "return uniform(0.15, 0.2, generator), uniform(0.75, 4 / 3, generator)",
            "small ones more often": """
                u, v = torch.rand(2, generator=generator).tolist()
                return 0.15 + 0.05 * u**2, 0.75 + 0.75 * v
            """,
            "aspect of the logarithm": """
                u, v = torch.rand(2, generator=generator).tolist()
                return 0.15 + 0.05 * u, 0.75 * 2 ** (v**2)
            """,
            "as it was": """
                u = torch.rand((), generator=generator).item()
                return 0.15 + (0.2 - 0.15) * u, 0.75 + (1.5 - 0.75) * u
            """,
            "the same number turned round": """
                u = torch.rand((), generator=generator).item()
                return 0.15 + (0.2 - 0.15) * u, 1.5 - (1.5 - 0.75) * u
            """,
            "a new generator every time": """
                generator = torch.Generator().manual_seed(0)
                return uniform(0.15, 0.2, generator), uniform(0.75, 1.5, generator)
            """,
            "always square": "return uniform(0.15, 0.2, generator), 1.0",
            "ranges exchanged": "return uniform(0.75, 1.5, generator), uniform(0.15, 0.2, generator)",
        },
        "right": {
            "two numbers at once": """
                u, v = torch.rand(2, generator=generator).tolist()
                return 0.15 + 0.05 * u, 0.75 + 0.75 * v
            """
        },
    },
    "ex3": {
        "wrong": {
            "one image without the generator": """
                allowed = marked(block, patches) & ~marked(targets, patches)
                count = int(allowed.sum(1).min())
                if count == 0:
                    raise ValueError("no context left")
                ticket = torch.rand(B, patches, generator=generator)
                ticket[0] = torch.rand(patches)
                return ticket.masked_fill(~allowed, -1).topk(count).indices
            """,
            "generator ignored": """
                allowed = marked(block, patches) & ~marked(targets, patches)
                count = int(allowed.sum(1).min())
                if count == 0:
                    raise ValueError("no context left")
                return torch.rand(B, patches).masked_fill(~allowed, -1).topk(count).indices
            """,
            "ValueError only if all images are empty": """
                allowed = marked(block, patches) & ~marked(targets, patches)
                count = int(allowed.sum(1).min())
                if not allowed.any():
                    raise ValueError("no context left")
                return torch.rand(B, patches, generator=generator).masked_fill(~allowed, -1).topk(count).indices
            """,
            "K = L - M*T": """
                allowed = marked(block, patches) & ~marked(targets, patches)
                count = block.shape[1] - targets[0].numel()
                if count == 0:
                    raise ValueError("no context left")
                return torch.rand(B, patches, generator=generator).masked_fill(~allowed, -1).topk(count).indices
            """,
            "N hard-wired to 64": """
                allowed = marked(block, 64) & ~marked(targets, 64)
                count = int(allowed.sum(1).min())
                if count == 0:
                    raise ValueError("no context left")
                return torch.rand(B, 64, generator=generator).masked_fill(~allowed, -1).topk(count).indices
            """,
            "a generator of its own": """
                generator = torch.Generator().manual_seed(0)
                allowed = torch.zeros(B, patches, dtype=torch.bool).scatter_(1, block, True)
                allowed.scatter_(1, targets.flatten(1), False)
                count = int(allowed.sum(1).min())
                if count == 0:
                    raise ValueError("no context")
                ticket = torch.rand(B, patches, generator=generator).masked_fill(~allowed, -1.0)
                return ticket.topk(count, dim=1).indices
            """,
            "the first in reading order": """
                allowed = torch.zeros(B, patches, dtype=torch.bool).scatter_(1, block, True)
                allowed.scatter_(1, targets.flatten(1), False)
                count = int(allowed.sum(1).min())
                if count == 0:
                    raise ValueError("no context")
                return allowed.byte().argsort(dim=1, descending=True, stable=True)[:, :count]
            """,
            "targets never taken out": """
                return block[:, torch.randperm(block.shape[1], generator=generator)]
            """,
            "everything but the targets, without a block": """
                allowed = torch.ones(B, patches, dtype=torch.bool).scatter_(1, targets.flatten(1), False)
                return torch.multinomial(allowed.float(), int(allowed.sum(1).min()), generator=generator)
            """,
            "as long as the largest": """
                allowed = torch.zeros(B, patches, dtype=torch.bool).scatter_(1, block, True)
                allowed.scatter_(1, targets.flatten(1), False)
                ticket = torch.rand(B, patches, generator=generator).masked_fill(~allowed, -1.0)
                return ticket.topk(int(allowed.sum(1).max()), dim=1).indices
            """,
            "with replacement": """
                allowed = torch.zeros(B, patches, dtype=torch.bool).scatter_(1, block, True)
                allowed.scatter_(1, targets.flatten(1), False)
                count = int(allowed.sum(1).min())
                if count == 0:
                    raise ValueError("no context")
                return torch.multinomial(allowed.float(), count, replacement=True, generator=generator)
            """,
            "an empty context without a word": """
                allowed = torch.zeros(B, patches, dtype=torch.bool).scatter_(1, block, True)
                allowed.scatter_(1, targets.flatten(1), False)
                ticket = torch.rand(B, patches, generator=generator).masked_fill(~allowed, -1.0)
                return ticket.topk(int(allowed.sum(1).min()), dim=1).indices
            """,
        },
        "right": {
            "multinomial": """
                allowed = torch.zeros(B, patches, dtype=torch.bool).scatter_(1, block, True)
                allowed.scatter_(1, targets.flatten(1), False)
                count = int(allowed.sum(1).min())
                if count == 0:
                    raise ValueError("no context")
                return torch.multinomial(allowed.float(), count, generator=generator)
            """,
            "with sets": """
                pairs = zip(block.tolist(), targets.flatten(1).tolist(), strict=True)
                left = [sorted(set(seen) - set(hidden)) for seen, hidden in pairs]
                count = min(len(row) for row in left)
                if not count:
                    raise ValueError("no context")
                rows = [torch.tensor(row)[torch.randperm(len(row), generator=generator)[:count]] for row in left]
                return torch.stack(rows)
            """,
        },
    },
    "ex4": {
        "wrong": {
            "context block forgotten": """
                return {"share": (1 - 0.175) ** 4, "small block": (1 - 0.175) ** 4, "larger batch": "shrinks"}
            """,
            "three of four targets counted": """
                return {"share": 0.925 * 0.825 ** 3, "small block": 0.45 * 0.825 ** 3, "larger batch": "shrinks"}
            """,
            "half, as a guess": """
                return {"share": 0.5, "small block": 0.5, "larger batch": "shrinks"}
            """,
            "too little": 'return {"share": 0.38, "small block": 0.2, "larger batch": "shrinks"}',
            "too much": 'return {"share": 0.55, "small block": 0.2, "larger batch": "shrinks"}',
            "targets that never overlap": """
                return {"share": 0.925 - 4 * 0.175, "small block": 0.0, "larger batch": "shrinks"}
            """,
            "the context block alone": 'return {"share": 0.925, "small block": 0.45, "larger batch": "shrinks"}',
            "the batch does not matter": 'return {"share": 0.43, "small block": 0.2, "larger batch": "stays"}',
            "cut to the largest": 'return {"share": 0.43, "small block": 0.2, "larger batch": "grows"}',
        },
        "right": {"rounder numbers": 'return {"share": 0.45, "small block": 0.2, "larger batch": "shrinks"}'},
    },
}
