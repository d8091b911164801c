"""Faults for a live server under load, and what its clients saw of them: `expertmesh chaos`.

scenario.py says what happens, load.py makes the streams, faults.py breaks workers, run.py leads through all
of it. history.py, invariants.py and judge.py know no server; they judge what was recorded.
"""
