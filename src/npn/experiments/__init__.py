"""The paper's experiments, as `npn run` starts them. Needs the `cli` extra: `pip install 'npn[cli]'`.

`moons` is one recipe; `runner` trains any recipe, `rundir` keeps a run on disk, `report` and `figures` show it.
"""
