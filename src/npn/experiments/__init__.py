"""The paper's experiments, as `npn run` trains them. Needs the `cli` extra: `pip install 'npn[cli]'`.

Imports point downwards: `registry`, then one folder for each experiment (`recipe`, `bench`, where needed `model` and
`figures`), then `engine`, which trains any recipe, then `report` and `data`.
"""
