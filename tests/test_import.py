"""`import npn` is cheap: beside torch it loads nothing but npn and the standard library."""

import subprocess
import sys

CODE = """
import sys, torch
before = set(sys.modules)
import npn
own = {"npn", *sys.stdlib_module_names}
print(*sorted(name for name in set(sys.modules) - before if name.partition(".")[0] not in own))
"""


def test_import_loads_neither_the_compiler_nor_other_libraries():
    """The compiler and sympy alone take four times as long as all of npn; models are traced without the former."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


MODULES = """
import npn
print(npn.export.read_bitmap.__name__, npn.sparse.to_csr.__name__, npn.integrations.session.__name__)
assert not hasattr(npn, "exports") and not hasattr(npn.integrations, "keras")
"""


def test_modules_are_there_once_they_are_named():
    """The documentation calls them npn.export, npn.sparse, npn.integrations."""
    done = subprocess.run([sys.executable, "-c", MODULES], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["read_bitmap", "to_csr", "npn.integrations.session"]
