"""argon2id alone: how many passwords a second these cores can hash at all.

python -m tests.load.hashing THREADS SECONDS
"""

import sys
import threading
import time

from argon2 import PasswordHasher

from service.security.password_hashing import Argon2


def rate(cost: Argon2, threads: int, seconds: float) -> float:
    hasher = PasswordHasher(cost.passes, cost.memory_kib, cost.lanes)
    counts = [0] * threads
    started = time.perf_counter()

    def work(index: int) -> None:
        while time.perf_counter() < started + seconds:
            hasher.hash("a long walk by the river")
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - started)


if __name__ == "__main__":
    cost = Argon2(memory_kib=19_456, passes=2, lanes=1)
    print(rate(cost, int(sys.argv[1]), float(sys.argv[2])))
