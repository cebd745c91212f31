"""Stored answers to the exercises: for each, wrong ones that look right, and right ones that differ from ours.

One module a notebook. `ANSWERS[exercise]["wrong" or "right"][name]` is the text that a student would write in place of
`raise NotImplementedError`; the tests must reject every wrong one and accept every right one.
"""
