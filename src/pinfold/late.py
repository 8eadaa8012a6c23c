"""Imports at first use, which no fork cuts in two.

A forked child has copies of the locks that Python holds on modules which another thread is importing in that moment,
and not the thread that would open them.
"""

import os
from _thread import RLock  # threading takes longer to load than all that `import pinfold` does

lock = RLock()  # around every import that is not at the head of its module

os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
