"""Answers to chapters/exercises/05_follow_target.ipynb."""


def runs(**changes: str) -> str:
    """The right names of the runs with some of them changed."""
    return f"return { ({**dict(A='frozen', B='no stop-gradient', C='right', D='fading'), **changes})!r}"


ANSWERS = {
    "ex1": {
        "wrong": {
            "norms stay behind": """
                for t, o in zip(target.modules(), online.modules(), strict=True):
                    if isinstance(t, nn.Linear):
                        t.weight.lerp_(o.weight, 1 - momentum)
                        t.bias.lerp_(o.bias, 1 - momentum)
            """,
            "only parameters with a gradient (a target encoder has none)": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    if t.requires_grad:
                        t.mul_(momentum).add_(o, alpha=1 - momentum)
            """,
            "weight and bias of one layer only": """
                for name in ("weight", "bias"):
                    t, o = getattr(target, name), getattr(online, name)
                    t.mul_(momentum).add_(o, alpha=1 - momentum)
            """,
            "weights only": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    if t.ndim > 1:
                        t.mul_(momentum).add_(o, alpha=1.0 - momentum)
            """,
            "0.9, whatever is asked": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    t.mul_(0.9).add_(o, alpha=0.1)
            """,
            "new memory": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    t.data = momentum * t.data + (1.0 - momentum) * o.data
            """,
            "add for add_": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    t.mul_(momentum).add(o, alpha=1.0 - momentum)
            """,
            "no underscore at all": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    t = t.mul(momentum).add(o, alpha=1.0 - momentum)
            """,
            "weights exchanged": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    t.mul_(1.0 - momentum).add_(o, alpha=momentum)
            """,
            "a copy": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    t.copy_(o)
            """,
            "one memory for both": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    t.data = o.data
            """,
            "the online encoder moves too": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    t.mul_(momentum).add_(o.mul_(1.0 - momentum))
            """,
        },
        "right": {
            "lerp_": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    t.lerp_(o, 1.0 - momentum)
            """,
            "copy_ of the sum": """
                for t, o in zip(target.parameters(), online.parameters(), strict=True):
                    t.copy_(momentum * t + (1.0 - momentum) * o)
            """,
        },
    },
    "ex2": {
        "wrong": {
            "half-lives": 'return {0.9: 6.6, 0.99: 69, 0.996: 173, "left": 0.67}',
            "hardly different": 'return {0.9: 10, 0.99: 20, 0.996: 30, "left": 0.67}',
            "gone after 100": 'return {0.9: 10, 0.99: 100, 0.996: 250, "left": 0.05}',
            "nothing forgotten": 'return {0.9: 10, 0.99: 100, 0.996: 250, "left": 0.996}',
            "a straight line": 'return {0.9: 10, 0.99: 100, 0.996: 250, "left": 1 - 100 * 0.004}',
        },
        "right": {"exact": 'return {0.9: 9.49, 0.99: 99.5, 0.996: 249.5, "left": 0.996**100}'},
    },
    "ex3": {
        "wrong": {
            "the low loss is the right one": runs(B="right", C="no stop-gradient"),
            "frozen and right exchanged": runs(A="right", C="frozen"),
            "the two collapsed ones exchanged": runs(B="fading", D="no stop-gradient"),
            "all right": runs(A="right", B="right", D="right"),
        },
    },
    "ex4": {
        "wrong": {
            "0 log 0 not thought of": """
                s = torch.linalg.svdvals(features - features.mean(0))
                p = s.square() / s.square().sum()
                return torch.exp(-(p * p.log()).sum()).item()
            """,
            "subtracts the mean from the given features in place": """
                features -= features.mean(0)
                v = torch.linalg.svdvals(features).square()
                p = v / v.sum()
                return torch.special.entr(p).sum().exp().item()
            """,
            "only the first six directions": """
                s = torch.linalg.svdvals(features - features.mean(0))
                v = s[:6].square()
                p = v / v.sum()
                return torch.special.entr(p).sum().exp().item()
            """,
            "small shares (below 5 %) dropped": """
                s = torch.linalg.svdvals(features - features.mean(0))
                p = s.square() / s.square().sum()
                p = p[p > 0.05]
                return torch.exp(-(p * p.log()).sum()).item()
            """,
            "one mean for all features": """
                variances = torch.linalg.svdvals(features - features.mean()).square()
                return torch.special.entr(variances / variances.sum()).sum().exp().item()
            """,
            "mean kept": """
                variances = torch.linalg.svdvals(features).square()
                return torch.special.entr(variances / variances.sum()).sum().exp().item()
            """,
            "singular values for variances": """
                values = torch.linalg.svdvals(features - features.mean(0))
                return torch.special.entr(values / values.sum()).sum().exp().item()
            """,
            "the plain rank": "return float(torch.linalg.matrix_rank(features - features.mean(0)))",
            "no exp": """
                variances = torch.linalg.svdvals(features - features.mean(0)).square()
                return torch.special.entr(variances / variances.sum()).sum().item()
            """,
            "nan where a share is 0": """
                variances = torch.linalg.eigvalsh((features - features.mean(0)).T @ (features - features.mean(0)))
                p = (variances / variances.sum()).round(decimals=6)
                return (-(p * p.log()).sum()).exp().item()
            """,
            "features standardised": """
                x = (features - features.mean(0)) / features.std(0)
                variances = torch.linalg.svdvals(x).square()
                return torch.special.entr(variances / variances.sum()).sum().exp().item()
            """,
        },
        "right": {
            "from the covariance": """
                variances = torch.linalg.eigvalsh(torch.cov(features.T.double())).clamp_min(0)
                return torch.special.entr(variances / variances.sum()).sum().exp().item()
            """
        },
    },
}
