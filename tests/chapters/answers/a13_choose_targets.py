"""Answers to chapters/exercises/13_choose_targets.ipynb."""

RIGHT = {"none": 4, "layer": 1, "channel": 1, "tanh, faint": 4, "tanh, strong": 1}


def said(**changed: float) -> str:
    """An answer with these numbers changed; `tanh_faint` stands for "tanh, faint"."""
    return f"return {RIGHT | {name.replace('_', ', '): value for name, value in changed.items()}}"


ANSWERS = {
    "ex1": {
        "wrong": {
            "normed together": """
                x = torch.cat(outputs, dim=-1)
                x = F.layer_norm(x, x.shape[-1:])
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "not normed": """
                x = torch.cat(outputs, dim=-1)
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "over the tokens as well": """
                x = torch.cat([F.layer_norm(tokens, tokens.shape[1:]) for tokens in outputs], dim=-1)
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "averaged, as data2vec does": """
                x = sum(F.layer_norm(tokens, tokens.shape[-1:]) for tokens in outputs) / len(outputs)
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "the last depth alone": """
                x = F.layer_norm(outputs[-1], outputs[-1].shape[-1:])
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "deepest first": """
                x = torch.cat([F.layer_norm(tokens, tokens.shape[-1:]) for tokens in reversed(outputs)], dim=-1)
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "depths alternate": """
                x = torch.stack([F.layer_norm(tokens, tokens.shape[-1:]) for tokens in outputs], dim=-1).flatten(2)
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "length 1 for a layer norm": """
                x = torch.cat([F.normalize(tokens, dim=-1) for tokens in outputs], dim=-1)
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "three depths of 11 numbers": """
                x = torch.cat([F.layer_norm(outputs[k], (11,)) for k in range(3)], dim=-1)
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "blocks and patches not told apart": """
                x = torch.cat([F.layer_norm(tokens, tokens.shape[-1:]) for tokens in outputs], dim=-1)
                return gather_tokens(x, target_idx.flatten(1))
            """,
            "writes into the outputs": """
                for tokens in outputs:
                    tokens -= tokens.mean(-1, keepdim=True)
                    tokens /= (tokens.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
                x = torch.cat(outputs, dim=-1)
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
        },
        "right": {
            "picked first, by hand": """
                found = []
                for tokens in outputs:
                    x = torch.stack([tokens[b, target_idx[b]] for b in range(len(tokens))])
                    found.append((x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt())
                return torch.cat(found, dim=-1)
            """,
            "normed once more, which changes nothing": """
                x = torch.cat([F.layer_norm(tokens, tokens.shape[-1:]) for tokens in outputs], dim=-1)
                x = F.layer_norm(x, x.shape[-1:])
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "one norm over stacked depths": """
                x = torch.stack(outputs, dim=2)
                x = F.layer_norm(x, x.shape[-1:]).flatten(2)
                return gather_tokens(x, target_idx.flatten(1)).reshape(*target_idx.shape, -1)
            """,
        },
    },
    "ex2": {
        "wrong": {
            "as it was": "teach_broken(model, teacher)",
            "copied, but momentum 0": """
                model.target.load_state_dict(teacher.state_dict())
                model.momentum = (0.0, 0.0)
            """,
            "momentum as in the paper": "model.target.load_state_dict(teacher.state_dict())",
            "kept at first, given up at the end": """
                model.target.load_state_dict(teacher.state_dict())
                model.momentum = (1.0, 0.996)
            """,
            "shared numbers": """
                for mine, theirs in zip(model.target.parameters(), teacher.parameters(), strict=True):
                    mine.data = theirs.data
                model.momentum = (1.0, 1.0)
            """,
            "the teacher itself": """
                model.target = teacher
                model.momentum = (1.0, 1.0)
            """,
            "the teacher itself, frozen": """
                model.target = teacher.requires_grad_(False)
                model.momentum = (1.0, 1.0)
            """,
            "a copy that may learn": """
                model.target = copy.deepcopy(teacher)
                model.momentum = (1.0, 1.0)
            """,
            "into the student": """
                model.encoder.load_state_dict(teacher.state_dict())
                model.momentum = (1.0, 1.0)
            """,
            "into both": """
                model.encoder.load_state_dict(teacher.state_dict())
                model.target.load_state_dict(teacher.state_dict())
                model.momentum = (1.0, 1.0)
            """,
            "frozen with the student": """
                model.target.load_state_dict(teacher.state_dict())
                model.encoder.requires_grad_(False)
                model.momentum = (1.0, 1.0)
            """,
            "the blocks alone": """
                model.target.blocks.load_state_dict(teacher.blocks.state_dict())
                model.momentum = (1.0, 1.0)
            """,
            "any shape will do": """
                model.target = copy.deepcopy(teacher).requires_grad_(False)
                model.momentum = (1.0, 1.0)
            """,
            "only frozen": "model.momentum = (1.0, 1.0)",
        },
        "right": {
            "copied in place, and no update": """
                with torch.no_grad():
                    for mine, theirs in zip(model.target.parameters(), teacher.parameters(), strict=True):
                        mine.copy_(theirs)
                model.after_step = lambda progress: 1.0
            """,
            "a frozen copy of the same shape": """
                if teacher.config != model.encoder.config:
                    raise ValueError("another shape")
                model.target = copy.deepcopy(teacher).requires_grad_(False)
                model.momentum = (1.0, 1.0)
            """,
        },
    },
    "ex3": {
        "wrong": {
            "as strong as it counts": said(none=2, tanh_faint=2),
            "the layer norm keeps strength": said(layer=4),
            "the root of it": said(layer=2),
            "the channel norm keeps strength": said(channel=4),
            "tanh changes nothing": said(tanh_strong=4),
            "tanh levels everything": said(tanh_faint=1),
            "tanh about in the middle": said(tanh_faint=2.5, tanh_strong=2.5),
            "nothing": "return {}",
        },
        "right": {
            "computed": """
                t = torch.tensor([1.0, -1.0])
                cost = lambda x: x.square().mean(-1)
                pair = torch.stack([t, 2 * t])
                both = cost((pair - pair.mean(0)) / pair.std(0))
                return {
                    "none": cost(2 * t) / cost(t),
                    "layer": cost(F.layer_norm(2 * t, (2,))) / cost(F.layer_norm(t, (2,))),
                    "channel": both[1] / both[0],
                    "tanh, faint": cost((0.02 * t).tanh()) / cost((0.01 * t).tanh()),
                    "tanh, strong": cost((6 * t).tanh()) / cost((3 * t).tanh()),
                }
            """,
        },
    },
}
