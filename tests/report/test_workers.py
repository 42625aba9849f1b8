from bigbatch.report.workers import distances, facts_of

START = {"kind": "start", "workers": 4, "recipe": {"comm": {"kind": "gossip", "method": "dmsgd", "topology": "ring", "label_skew": 0.0}}}
APART = {"kind": "evaluation", "update": 100, "samples": 1000, "distance": 0.2, "relative_distance": 0.025, "sent_bytes": 5_000_000}
LAST = {**APART, "update": 200, "samples": 2000, "distance": 0.0, "relative_distance": 0.0, "sent_bytes": 10_000_000}


def test_a_run_by_gossip():
    record = [START, APART, LAST]
    assert distances(record, "update") == ([100.0], [2.5])
    assert facts_of(record) == [
        ("workers", "4: gossip, dmsgd, ring"),
        ("distance from their mean, before the last average", "2.5 % of its length"),
        ("sent by the first worker", "10.0 MB, 0.05 MB an update"),
    ]


def test_a_run_by_all_reduce_has_nothing_to_say():
    plain = {"kind": "evaluation", "update": 100, "samples": 1000, "score": 0.9}
    assert distances([START, plain], "samples") == ([], [])
    assert facts_of([START, plain]) == []
