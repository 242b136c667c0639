"""Ranks of a training that are threads of one process."""

import threading

from latticeflow.training.parallel import Group


class Thread(Group):
    """A rank that is a thread; sums and broadcasts through a list that all of them see."""

    def __init__(self, rank, size, slots, meet):
        self.rank, self.size, self.slots, self.meet = rank, size, slots, meet

    def _all(self, x):
        self.slots[self.rank] = x.clone()
        self.meet.wait(20)
        every = [slot.clone() for slot in self.slots]
        self.meet.wait(20)
        return every

    def sum(self, x):
        return x.copy_(sum(self._all(x)))

    def broadcast(self, x):
        return x.copy_(self._all(x)[0])


def on_ranks(size, work):
    """`work(group)` on each of `size` ranks: list of what it returned or raised."""
    slots, meet, found = [None] * size, threading.Barrier(size), [None] * size

    def one(rank):
        try:
            found[rank] = work(Thread(rank, size, slots, meet))
        except BaseException as error:
            found[rank] = error

    ranks = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return found
