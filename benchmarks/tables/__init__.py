"""The paper's tables, peers and further checks, as runs that leave one record each.

Data flow: ``settings`` (a data set, a network, a recipe) -> ``cases`` (a vanilla network and what is made of it) ->
``methods``, ``peers`` and ``finetunings`` (one run each) -> ``plans`` (which runs a table needs) -> ``recorded`` (the
records, read back) -> ``comparisons``, ``singles`` and ``pages`` (docs/pages).
"""
