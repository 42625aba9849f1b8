from bigbatch.report.workers import distances, draw_staleness, staleness_of, worker_facts

RECORD = [
    {"kind": "start", "workers": 4},
    {"kind": "staleness", "update": 1, "samples": 1, "histogram": {"0": 1}},
    {"kind": "staleness", "update": 10, "samples": 10, "histogram": {"0": 2, "1": 6, "3": 2}},
    {"kind": "end", "updates": 10, "staleness_bound": 3, "refused": {"late": 1}, "received_bytes": 4_000_000, "sent_bytes": 6_000_000},
]
START = {"kind": "start", "workers": 4, "recipe": {"comm": {"kind": "gossip", "method": "dmsgd", "topology": "ring", "label_skew": 0.0}}}
APART = {"kind": "evaluation", "update": 100, "samples": 1000, "distance": 0.2, "relative_distance": 0.025, "sent_bytes": 5_000_000}
LAST = {**APART, "update": 200, "samples": 2000, "distance": 0.0, "relative_distance": 0.0, "sent_bytes": 10_000_000}


def test_hand_worked():
    assert staleness_of(RECORD) == {0: 2, 1: 6, 3: 2}
    facts = dict(worker_facts(RECORD))
    assert facts["staleness, updates"] == "1.20 on the mean, 3 at most; bound 3"
    assert facts["gradients applied"] == "10"
    assert facts["gradients refused"] == "1 late"
    assert facts["both, an update"] == "1.000 MB"


def test_the_plot_is_named_and_an_ordinary_run_has_none():
    assert 'aria-label="Staleness of gradients"' in draw_staleness(RECORD)
    assert draw_staleness(RECORD[:1]) is None
    assert worker_facts(RECORD[:1]) == []


def test_a_run_by_gossip():
    record = [START, APART, LAST]
    assert distances(record, "update") == ([100.0], [2.5])
    assert worker_facts(record) == [
        ("workers at the start", "4: gossip, dmsgd, ring"),
        ("distance from their mean, before the last average", "2.5 % of its length"),
        ("sent to neighbours by the first worker", "10.0 MB, 0.05 MB an update"),
    ]


def test_a_run_by_all_reduce_has_nothing_to_say():
    plain = {"kind": "evaluation", "update": 100, "samples": 1000, "score": 0.9}
    assert distances([START, plain], "samples") == ([], [])
    assert worker_facts([START, plain]) == []
