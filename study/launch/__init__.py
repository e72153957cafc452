"""Where runs are executed: in this process, in a pool of worker processes, or elsewhere, behind one interface."""
