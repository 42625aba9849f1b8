r"""A network of ports, message by message: checks the closed forms where every host waits for what it really gets.

A host's port sends one message after the other, and receives one after the other; both at once. A message that may leave at t
    begins  when t has come and the sender's port is free,
    fills   the sender's port for b beta,
    fills   the receiver's from begin + alpha, or when it is free, for b beta (b (beta + gamma) where it is added to what is there),
    is there when that ends.
Messages are given in rounds, in the order in which each port serves them; all messages of a round that share no port are computed at once,
so that 4,096 hosts take a second. Hosts may begin at different times, and none waits for more than the messages that it needs.
"""

import heapq
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bigbatch.simulate.gloo_ring import segments
from bigbatch.simulate.link import Link
from bigbatch.simulate.overlap import Bucket

Seconds = NDArray[np.float64]
Hosts = NDArray[np.int64]


class Network:
    """Hosts and when their ports are free."""

    def __init__(self, link: Link, hosts: int) -> None:
        self.link, self.hosts = link, hosts
        self.out, self.into = np.zeros(hosts), np.zeros(hosts)

    def send(self, sources: Hosts, targets: Hosts, num_bytes: float, ready: Seconds, *, added: bool = False) -> Seconds:
        """Send one message for each pair, and say when each is there.

        Args:
            sources: Who sends.
            targets: To whom.
            num_bytes: Of each message.
            ready: When each may leave.
            added: Whether receivers add them to what they have.

        Returns:
            When each message is there, in the order given.
        """
        wire = num_bytes * self.link.beta_s_per_byte
        receive = num_bytes * (self.link.reduced_s_per_byte if added else self.link.beta_s_per_byte)
        if _distinct(sources) and _distinct(targets):
            begin = np.maximum(ready, self.out[sources])
            self.out[sources] = begin + wire
            self.into[targets] = np.maximum(begin + self.link.alpha_s, self.into[targets]) + receive
            return self.into[targets].copy()
        there = np.zeros(len(ready))
        for i in np.argsort(ready, kind="stable"):
            begin = max(ready[i], self.out[sources[i]])
            self.out[sources[i]] = begin + wire
            self.into[targets[i]] = max(begin + self.link.alpha_s, self.into[targets[i]]) + receive
            there[i] = self.into[targets[i]]
        return there


def ring(network: Network, num_bytes: float, ready: Seconds) -> Seconds:
    """When each host has the sum, by a ring: n - 1 rounds that add pieces, n - 1 that hand sums on."""
    n, now = network.hosts, ready.copy()
    here = np.arange(n)
    after = np.roll(here, -1)
    for i in range(2 * (n - 1)):
        there = network.send(here, after, num_bytes / n, now, added=i < n - 1)
        now[after] = np.maximum(now[after], there)
    return now


def gloo_ring(network: Network, num_bytes: float, ready: Seconds) -> Seconds:
    """When each host has the sum, by gloo's ring: it sends a segment when it has received the last but one."""
    n, now = network.hosts, ready.copy()
    here = np.arange(n)
    after = np.roll(here, -1)
    count = segments(n, num_bytes)
    for added in (True, False):
        received: list[Seconds] = [now, now]
        issue = now
        for _ in range((n - 1) * count // n):
            issue = np.maximum(issue, received[-2])
            there = np.empty(n)
            there[after] = network.send(here, after, num_bytes / count, issue, added=added)
            received.append(there)
        now = np.maximum(received[-1], network.out)
    return now


def halving_doubling(network: Network, num_bytes: float, ready: Seconds) -> Seconds:
    """When each host has the sum, by halving and doubling; hosts beyond a power of two hand all to a neighbour first."""
    n, now = network.hosts, ready.copy()
    rounds = n.bit_length() - 1
    extra = n - (1 << rounds)
    outside, beside = 2 * np.arange(extra), 2 * np.arange(extra) + 1
    if extra:
        now[beside] = np.maximum(now[beside], network.send(outside, beside, num_bytes, now[outside], added=True))
    inside = np.concatenate([beside, np.arange(2 * extra, n)])
    place = np.arange(len(inside))
    halving = range(rounds)  # nearest partner first, with half of the bytes; then all the way back
    for turn, i in enumerate([*halving, *reversed(halving)]):
        partner = inside[place ^ (1 << i)]
        there = network.send(inside, partner, num_bytes / (2 << i), now[inside], added=turn < rounds)
        now[partner] = np.maximum(now[partner], there)
    if extra:
        now[outside] = np.maximum(now[outside], network.send(beside, outside, num_bytes, now[beside]))
    return now


def tree(network: Network, num_bytes: float, ready: Seconds) -> Seconds:
    """When each host has the sum, by a binomial tree to host 0 and back."""
    n, now = network.hosts, ready.copy()
    hops = [1 << i for i in range((n - 1).bit_length())]
    for hop in hops:
        children = np.arange(hop, n, 2 * hop)
        parents = children - hop
        now[parents] = np.maximum(now[parents], network.send(children, parents, num_bytes, now[children], added=True))
    for hop in reversed(hops):
        children = np.arange(hop, n, 2 * hop)
        now[children] = network.send(children - hop, children, num_bytes, now[children - hop])
    return now


ALL_REDUCES = {"ring": ring, "gloo_ring": gloo_ring, "halving_doubling": halving_doubling, "tree": tree}


def overlapped(link: Link, name: str, buckets: Sequence[Bucket], compute: Seconds, *, backward_share: float) -> float:
    """When all hosts have all gradients: each bucket's all-reduce begins, on each host, when it is ready and the one before is done there.

    Args:
        link: Between hosts.
        name: Of the all-reduce.
        buckets: In the order in which they are ready.
        compute: Seconds that each host computes, shape (hosts,).
        backward_share: Of these, in the backward pass.
    """
    network, now = Network(link, len(compute)), np.zeros(len(compute))
    for bucket in buckets:
        ready = compute * (1 - backward_share * (1 - bucket.ready))
        now = ALL_REDUCES[name](network, bucket.num_bytes, np.maximum(now, ready))
    return float(np.maximum(now, compute).max())


def gossip(link: Link, hops: Sequence[Sequence[int]], num_bytes: float, compute: Seconds, *, overlap: bool) -> Seconds:
    """When each host ends each update of gossip, where everyone sends the same distances onward.

    Args:
        link: Between hosts.
        hops: For each update of a cycle, how many places onward each host sends.
        num_bytes: Of each message.
        compute: Seconds that each host computes in each update, shape (updates, hosts).
        overlap: Whether weights leave when an update begins; else when its computing ends.

    Returns:
        Seconds, shape (updates, hosts).
    """
    updates, n = compute.shape
    network, here, now = Network(link, n), np.arange(n), np.zeros(n)
    ends = np.zeros((updates, n))
    for i in range(updates):
        computed = now + compute[i]
        leave = now if overlap else computed
        heard = computed.copy()
        for hop in hops[i % len(hops)]:
            targets = (here + hop) % n
            heard[targets] = np.maximum(heard[targets], network.send(here, targets, num_bytes, leave, added=True))
        ends[i] = now = heard
    return ends


def streaming(link: Link, name: str, num_bytes: float, compute: Seconds, *, every: int, delay: int) -> Seconds:
    """When each host ends each update, where every few updates an all-reduce begins and is applied some updates later.

    Args:
        link: Between hosts.
        name: Of the all-reduce.
        num_bytes: Of a fragment.
        compute: Seconds that each host computes in each update, shape (updates, hosts).
        every: Updates from the beginning of one exchange to that of the next.
        delay: Updates that a host makes before it waits for what was exchanged.

    Returns:
        Seconds, shape (updates, hosts).
    """
    updates, n = compute.shape
    network, now = Network(link, n), np.zeros(n)
    ends, due = np.zeros((updates, n)), dict[int, Seconds | float]()
    for i in range(updates):
        now = np.maximum(now + compute[i], due.pop(i, 0.0))
        if (i + 1) % every == 0:
            there = ALL_REDUCES[name](network, num_bytes, now)
            now = np.maximum(now, there) if delay == 0 else now
            due[i + delay] = there
        ends[i] = now
    return ends


def pairs(link: Link, num_bytes: float, compute: Seconds, *, every: int, peers: Callable[[int], Hosts]) -> Seconds:
    """When each host ends each update, where it exchanges with one peer every few updates and waits for nobody else.

    Args:
        link: Between hosts.
        num_bytes: Of a message.
        compute: Seconds that each host computes in each update, shape (updates, hosts).
        every: Updates from one exchange to the next.
        peers: Number of an exchange, from 0, to the peer of each host; a host whose peer it is itself sits out.

    Returns:
        Seconds, shape (updates, hosts).
    """
    updates, n = compute.shape
    network, here, now = Network(link, n), np.arange(n), np.zeros(n)
    ends = np.zeros((updates, n))
    for i in range(updates):
        now = now + compute[i]
        if (i + 1) % every == 0:
            peer = peers(i // every)
            sends = here[peer != here]
            there = network.send(sends, peer[sends], num_bytes, now[sends], added=True)
            now[peer[sends]] = np.maximum(now[peer[sends]], there)
        ends[i] = now
    return ends


def parameter_server(link: Link, num_bytes: float, compute: Seconds, *, servers: int) -> float:
    """When the last worker has pulled, all having pushed their gradients to every server."""
    n = len(compute)
    network, piece = Network(link, n + servers), num_bytes / servers
    pushed = np.zeros(servers)
    for turn in range(servers):  # each worker begins with another server
        to = (np.arange(n) + turn) % servers
        there = network.send(np.arange(n), n + to, piece, compute, added=True)
        np.maximum.at(pushed, to, there)
    last = 0.0
    for turn in range(servers):
        of = (np.arange(n) + turn) % servers
        there = network.send(n + of, np.arange(n), piece, np.full(n, pushed.max()))
        last = max(last, float(there.max()))
    return last


def asynchronous_server(link: Link, num_bytes: float, compute_s: float, *, workers: int, gradients: int) -> float:
    """Seconds in which one server applies so many gradients of workers that compute, push, pull and begin anew.

    Events are taken in the order of their times: who has computed pushes when the server's port can receive, then pulls.
    """
    wire, added = num_bytes * link.beta_s_per_byte, num_bytes * link.reduced_s_per_byte
    events = [(compute_s * (1 + i / workers), i, "push") for i in range(workers)]  # begun one after the other
    heapq.heapify(events)
    into = out = 0.0
    done = 0
    while True:
        now, worker, what = heapq.heappop(events)
        if what == "push":
            into = max(now + link.alpha_s, into) + added
            done += 1
            if done == gradients:
                return into
            heapq.heappush(events, (into, worker, "pull"))
        else:
            begin = max(now, out)
            out = begin + wire
            heapq.heappush(events, (out + link.alpha_s + compute_s, worker, "push"))


def _distinct(hosts: Hosts) -> bool:
    return bool(np.bincount(hosts).max(initial=0) <= 1)
