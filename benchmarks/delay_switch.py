"""A network switch in user space that holds every frame for a while: delay for kernels without tc netem.

    python benchmarks/delay_switch.py 10 port0 port1 ...

The first argument is the delay in ms, the others are the devices to connect. links.py starts it in the namespace of its switch, in
place of a bridge; "ready" on its output says that frames now pass. Rates are left to tc, which acts on the same devices. A frame that
finds a device's queue full is dropped, as any switch would.
"""

import contextlib
import select
import socket
import sys
import time
from collections import deque

HEADER = 10  # bytes of struct virtio_net_hdr before each frame
LARGEST = 70_000  # bytes: TCP hands over segments of up to 64 kB as one frame
BUFFER = 64 << 20  # bytes per socket, so that tc's queue is the one that fills up
EVERY_PROTOCOL, SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 0x0003, 263, 15, 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33


def open_port(device):
    """A socket that reads and writes whole frames of a device, with the header that lets large segments and late checksums pass."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # hears nothing until bound, so that no other device's frames get in
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    port.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
    port.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    port.setblocking(False)
    port.bind((device, EVERY_PROTOCOL))
    return port


def switch(ports, delay_s):
    """Pass frames on for ever, each `delay_s` after it came."""
    learnt = {}  # address: the port behind which it was last seen
    waiting = deque()  # (when to send, port, frame); the delay is the same for all, so first in is first out
    while True:
        timeout_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for port in select.select(ports, [], [], timeout_s)[0]:
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):  # then it is the next port's turn
                    frame = port.recv(LARGEST)
                    due = time.monotonic() + delay_s
                    to, sender = frame[HEADER : HEADER + 6], frame[HEADER + 6 : HEADER + 12]
                    learnt[sender] = port
                    others = [p for p in ports if p is not port]  # for broadcasts and addresses not seen yet
                    waiting.extend((due, p, frame) for p in ([learnt[to]] if to in learnt else others) if p is not port)
        while waiting and waiting[0][0] <= time.monotonic():
            _, port, frame = waiting.popleft()
            with contextlib.suppress(OSError):  # dropped
                port.send(frame)


if __name__ == "__main__":
    sockets = [open_port(device) for device in sys.argv[2:]]
    print("ready", flush=True)
    switch(sockets, float(sys.argv[1]) / 1000)
