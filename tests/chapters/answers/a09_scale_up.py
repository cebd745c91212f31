"""Answers to chapters/exercises/09_scale_up.ipynb."""

STEP = """
    samples, total = sum(len(x) for x, _ in micros), 0.0
    {first}
    for x, y in micros:
        loss = F.mse_loss(model(x), y) * {weight}
        {before}
        loss.backward()
        total += loss.item()
        {each}
    {cut}
    {last}
    return {returned}
"""

LOOP = """
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    parts, rates = batch // micro, []
    steps = {steps}
    chunks = zip(x.repeat(epochs, 1).split(micro), y.repeat(epochs, 1).split(micro), strict=True)
    for number, (x_part, y_part) in enumerate(chunks):
        progress = {progress}
        (F.mse_loss(model(x_part), y_part){divided}).backward()
        {each}
        if (number + 1) % parts == 0:
            optimiser.param_groups[0]["lr"] = warmup_cosine(progress, 0.3, 0.1)
            rates.append(optimiser.param_groups[0]["lr"])
            {first}
            optimiser.step()
            optimiser.zero_grad()
            {last}
    return rates
"""
FOLLOW = "ema_update(target, model, momentum_at(progress, 0.8, 1.0))"


def step(**changes: str) -> str:
    """The right step with some of its lines changed."""
    right = dict(first="optimiser.zero_grad()", weight="len(x) / samples", before="pass", each="pass")
    right |= dict(cut="nn.utils.clip_grad_norm_(model.parameters(), clip)", last="optimiser.step()", returned="total")
    return STEP.format(**{**right, **changes})


def loop(**changes: str) -> str:
    """The right training loop with some of its lines changed."""
    right = dict(steps="epochs * len(x) // batch", progress="len(rates) / steps", divided=" / parts", each="pass")
    return LOOP.format(**{**right, "first": "pass", "last": FOLLOW, **changes})


def predicted(**changes: object) -> str:
    """The right predictions with some of them changed."""
    right = dict(depth=2.0, kept="below a tenth", flops=4 / 3, gradient="the same")
    return f"return { ({**right, **changes})!r}"


ANSWERS = {
    "ex1": {
        "wrong": {
            "the list is emptied": step(each="if (x is micros[-1][0]): micros.clear()"),
            "outputs hard-wired: sum of squares over 2 * samples": """
                samples, total = sum(len(x) for x, _ in micros), 0.0
                optimiser.zero_grad()
                for x, y in micros:
                    loss = F.mse_loss(model(x), y, reduction="sum") / (2 * samples)
                    loss.backward()
                    total += loss.item()

                nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimiser.step()
                return total
            """,
            "the whole batch in memory": """
                x, y = (torch.cat(part) for part in zip(*micros))
                optimiser.zero_grad()
                loss = F.mse_loss(model(x), y)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimiser.step()
                return loss.item()
            """,
            "all graphs in memory": """
                samples = sum(len(x) for x, _ in micros)
                optimiser.zero_grad()
                loss = sum(F.mse_loss(model(x), y) * len(x) / samples for x, y in micros)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimiser.step()
                return loss.item()
            """,
            "ten samples, whatever is given": """
                total = 0.0
                optimiser.zero_grad()
                for x, y in micros:
                    loss = F.mse_loss(model(x), y) * len(x) / 10
                    loss.backward()
                    total += loss.item()
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimiser.step()
                return total
            """,
            "a step by hand": """
                samples, total = sum(len(x) for x, _ in micros), 0.0
                optimiser.zero_grad()
                for x, y in micros:
                    loss = F.mse_loss(model(x), y) * len(x) / samples
                    loss.backward()
                    total += loss.item()
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                with torch.no_grad():
                    for p in model.parameters():
                        p -= 0.1 * p.grad
                return total
            """,
            "not divided": step(weight="1"),
            "divided by the number of micro-batches": step(weight="(1 / len(micros))"),
            "gradients cleared inside the loop": step(before="optimiser.zero_grad()"),
            "a step after every micro-batch": step(each="optimiser.step(); optimiser.zero_grad()", last="pass"),
            "gradients never cleared": step(first="pass"),
            "every micro-batch cut by itself": step(
                each="nn.utils.clip_grad_norm_(model.parameters(), clip)", cut="pass"
            ),
            "not cut": step(cut="pass"),
            "cut after the step": step(
                cut="optimiser.step()", last="nn.utils.clip_grad_norm_(model.parameters(), clip)"
            ),
            "the loss of the last micro-batch": step(returned="loss.item()"),
            "divided by the size of the first": step(weight="(len(x) / (len(micros) * len(micros[0][0])))"),
        },
        "right": {
            "cleared after the step": step(first="pass", last="optimiser.step(); optimiser.zero_grad()"),
            "the micro-batches backwards": step(first="micros = micros[::-1]; optimiser.zero_grad()"),
            "sums, divided at the end": """
                samples, total = 0, 0.0
                optimiser.zero_grad()
                for x, y in micros:
                    loss = (model(x) - y).square().mean(1).sum()
                    loss.backward()
                    samples, total = samples + len(x), total + loss.item()
                for p in model.parameters():
                    p.grad /= samples
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimiser.step()
                return total / samples
            """,
        },
    },
    "ex2": {
        "wrong": {
            "48 samples, whatever is given": loop(steps="epochs * 48 // batch"),
            "silent bug 3: schedule and target run on micro-batches": loop(
                progress="number / steps", each="pass", last="pass"
            ).replace("    return rates", f"        {FOLLOW}\n    return rates"),
            "`micro` ignored": "return train_broken(model, target, x, y, batch, batch, epochs)",
            "twenty steps, whatever is asked": loop(steps="20"),
            "the bias does not follow": loop(last="ema_update_weight(target, model)").replace(
                "ema_update_weight(target, model)",
                "torch.no_grad()(lambda m: target.weight.mul_(m).add_(model.weight, alpha=1 - m))"
                "(momentum_at(progress, 0.8, 1.0))",
            ),
            "only the target repaired": loop(progress="number / steps"),
            "only the rate repaired": loop(each=FOLLOW, last="pass"),
            "the length counted in micro-batches": loop(steps="epochs * len(x) // micro"),
            "both counted in micro-batches": loop(progress="number / (steps * parts)"),
            "the target follows before the step": loop(first=FOLLOW, last="pass"),
            "a part of the momentum for every micro-batch": loop(
                each=FOLLOW.replace("1.0))", "1.0) ** (1 / parts))"), last="pass"
            ),
            "gradients added, not averaged": loop(divided=""),
            "one step too far": loop(progress="(len(rates) + 1) / steps"),
        },
        "right": {
            "whole division": loop(progress="number // parts / steps"),
            "a loop over steps": """
                optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
                x, y, rates = x.repeat(epochs, 1), y.repeat(epochs, 1), []
                steps = len(x) // batch
                for s in range(steps):
                    rates.append(warmup_cosine(s / steps, 0.3, 0.1))
                    optimiser.param_groups[0]["lr"] = rates[-1]
                    optimiser.zero_grad()
                    for start in range(s * batch, (s + 1) * batch, micro):
                        loss = F.mse_loss(model(x[start : start + micro]), y[start : start + micro])
                        (loss * micro / batch).backward()
                    optimiser.step()
                    ema_update(target, model, momentum_at(s / steps, 0.8, 1.0))
                return rates
            """,
        },
    },
    "ex3": {
        "wrong": {
            "everything twice": predicted(flops=2.0),
            "backward costs as much as forward": predicted(flops=1.5),
            "for nothing": predicted(flops=1.0),
            "half is kept": predicted(kept="half"),
            "an approximation": predicted(gradient="an approximation"),
            "memory does not depend on depth": predicted(depth=1.0),
        },
        "right": {"as measured": predicted(flops=1.24, depth=1.97)},
    },
}
