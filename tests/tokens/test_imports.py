from __future__ import annotations

import subprocess
import sys


def test_importing_the_package_loads_no_model_library():
    code = "import sys, tokenclean; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
