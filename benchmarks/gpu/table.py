"""The table of `make gpu`: every value beside its goal."""

from benchmarks.gpu.part import read_part

TIMED = ("steps", "norms", "loops")
"""Parts whose figures mean nothing in a dry run."""


def show(files, facts, ended):
    """Print all rows of the parts' files.

    Returns:
        1 if a part failed, or a test or a wait was found; 0 else: a goal that is missed is a result.
    """
    dry, failed = facts["device"] == "cpu" or facts["quick"], False
    if dry:
        print("\nDry run: shows that every part runs, on small shapes and in few rounds; no figure is a claim about any GPU.\n")
    else:
        print(f"\n{facts['device']}, torch {facts['torch']}, commit {facts['commit']}\n")
    rows = [("part", "what", "value", *(() if dry else ("goal", "")))]
    for part, path in files.items():
        stored = read_part(path)
        for row in stored.get("rows", []) if stored.get("facts") == facts else []:
            failed |= bool(row.get("error") or row.get("wait"))
            rows.append(
                (
                    part,
                    row["what"],
                    row.get("error") or ("measured" if dry and part in TIMED else text_of(row)),
                    *(() if dry else judged(row)),
                )
            )
        if part in ended:
            failed = failed or "time" not in ended[part]
            rows.append((part, ended[part], "", *(() if dry else ("", ""))))
    widths = [min(max(len(row[i]) for row in rows), 70) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return int(failed)


def text_of(row):
    value = row["value"]
    return f"{value:.4g} {row['unit']}".strip() if isinstance(value, int | float) else f"{value} {row['unit']}".strip()


def judged(row):
    """The goal in words, and whether it is met."""
    if not row.get("goal") or row["value"] is None:
        return "", ""
    sign, number = row["goal"]
    met = row["value"] <= number if sign == "<=" else row["value"] >= number
    return f"{sign} {number:g}", "met" if met else "MISSED"
