"""On PYTHONPATH of a job: training steps take longer, so that there is time to disturb them.

STEP_PAUSE is in seconds; of several with colons between, one for each start of the job. None any more as soon as
there is a file STEP_GATE. The whole job has the nice value STEP_NICE, if that is given.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time

LOOK = 0.2  # seconds between looks at the gate


class _Slow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name != "study.train":
            return None
        self.spec = importlib.machinery.PathFinder.find_spec(name, path)
        return importlib.machinery.ModuleSpec(name, self, origin=self.spec.origin)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__file__ = self.spec.origin
        self.spec.loader.exec_module(module)
        step = module.Trainer.step
        pauses = [float(pause) for pause in os.environ["STEP_PAUSE"].split(":")]
        pause = pauses[min(int(os.environ.get("SLURM_RESTART_COUNT", 0)), len(pauses) - 1)]

        gate = os.environ.get("STEP_GATE", "")

        def slow_step(trainer):
            end = time.monotonic() + pause
            while (left := end - time.monotonic()) > 0 and not os.path.exists(gate):
                time.sleep(min(left, LOOK))
            return step(trainer)

        module.Trainer.step = slow_step


if "STEP_NICE" in os.environ:
    os.setpriority(os.PRIO_PROCESS, 0, int(os.environ["STEP_NICE"]))
sys.meta_path.insert(0, _Slow())
