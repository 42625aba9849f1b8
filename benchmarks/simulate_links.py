"""Does the simulator say what was measured on slow links?

    python benchmarks/simulate_links.py

For every cell of slow_links.jsonl, the latency and bandwidth are fitted to that cell's own messages between neighbours, and the time of an
update is predicted for each way of going together. What a host computes is measured without a network (arms none, compress and mix).
Nothing else is fitted. Prints the error of each cell and way, the median over the table and the worst, and writes simulate_links.json
beside this script.
"""

import json
import statistics
from pathlib import Path

from slow_links import LAYERS, Weights, period_of

from bigbatch.comm.gossip.gossip import AHEAD_BYTES
from bigbatch.simulate.alpha_beta import fit_alpha_beta
from bigbatch.simulate.case import Case
from bigbatch.simulate.compression import powersgd_bytes
from bigbatch.simulate.link import Link
from bigbatch.simulate.overlap import Bucket
from bigbatch.simulate.strategies import seconds_per_update

HERE = Path(__file__)
STRATEGIES = {  # arm of slow_links.py to a strategy of the simulator
    "all-reduce": "gloo_ring",
    "buckets": "gloo_ring",
    "D-PSGD ring": "gossip_ring",
    "one peer": "gossip_one_peer_exponential",
    "local SGD": "local_sgd",
    "PowerSGD": "powersgd",
    "server": "parameter_server",
    "local SGD 30": "local_sgd",
    "DiLoCo 30": "diloco",
    "DiLoCo 30 int8": "diloco_int8",
    "DiLoCo 30 int4": "diloco_int4",
    "Streaming DiLoCo 30": "streaming_diloco",
    "NoLoCo 30": "noloco",
}


def beside(line, arm, lines):
    """Seconds that an arm without a network takes beyond "none", with as many hosts and bytes."""
    for other in lines:
        if arm in other["median_s"] and (other["hosts"], other["mb"]) == (line["hosts"], line["mb"]):
            return max(other["median_s"][arm] - other["median_s"]["none"], 0.0)
    return 0.0


def case_of(line, arm, lines):
    """The simulator's case of a cell and arm."""
    shapes = [tuple(p.shape) for p in Weights(int(line["mb"] * 1e6)).parameters()]
    model_bytes = 4 * sum(a * b for a, b in shapes)
    fit = fit_alpha_beta({int(size): times for size, times in line["link"].items()})
    small = arm in ("D-PSGD ring", "one peer") and model_bytes <= AHEAD_BYTES
    alpha_s = fit.alpha_s / 2 if small else fit.alpha_s  # received an update ahead: the receiver need not say first that it is ready
    one_bucket = (Bucket(model_bytes, 1.0),)
    mix_s = beside(line, "mix", lines) if arm in ("D-PSGD ring", "one peer") else 0.0
    return Case(
        workers=line["hosts"] - (arm == "server"),  # the first host's worker is beside the server, no link between them
        link=Link(alpha_s, fit.beta_s_per_byte, mix_s / model_bytes),
        model_bytes=model_bytes,
        step_s=line["median_s"]["none"],
        buckets=one_bucket if arm in ("all-reduce", "PowerSGD") else (),
        bucket_bytes=min(max(model_bytes / 2**20 / LAYERS, 1.0), 25.0) * 2**20,
        streams=2,
        all_reduce="gloo_ring",
        local_steps=period_of(arm),
        outer_period=period_of(arm),
        powersgd_all_reduces=2,  # these models have no vectors
        compress_s=beside(line, "compress", lines) if arm == "PowerSGD" else 0.0,  # what rounding takes was not measured
        powersgd_ratio=model_bytes / powersgd_bytes(shapes, rank=4),
    )


def main():
    lines = [json.loads(text) for text in HERE.with_name("slow_links.jsonl").read_text().splitlines()]
    rows = []
    for line in lines:
        for arm, strategy in STRATEGIES.items():
            if arm in line["median_s"]:
                predicted, measured = seconds_per_update(strategy, case_of(line, arm, lines)), line["median_s"][arm]
                cell = {name: line[name] for name in ("hosts", "rate_mbit", "delay_ms", "mb")}
                rows.append({**cell, "arm": arm, "measured_s": measured, "predicted_s": round(predicted, 5)})
                rows[-1]["error"] = round(predicted / measured - 1, 3)
    summary = {"median_error": statistics.median(abs(row["error"]) for row in rows)}
    for name in ("arm", "mb", "rate_mbit", "delay_ms", "hosts"):
        values = sorted({row[name] for row in rows}, key=str)
        summary[f"by {name}"] = {str(v): round(statistics.median(abs(r["error"]) for r in rows if r[name] == v), 3) for v in values}
    worst = sorted(rows, key=lambda row: -abs(row["error"]))[:10]
    for row in rows:
        print(row)
    print("worst", *worst, sep="\n  ")
    print(json.dumps(summary, indent=2))
    HERE.with_suffix(".json").write_text(json.dumps({"summary": summary, "worst": worst, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
