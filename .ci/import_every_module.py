"""Import every module of the installed longrope; run it by `make wheel-check`, where no extra is installed."""

import importlib
import pkgutil
import sys
import traceback
from pathlib import Path

import longrope

package = Path(longrope.__file__).parent
if "site-packages" not in package.parts:
    sys.exit(f"{package} is not an installed longrope")
needed = ("py.typed", "configs/README.md", "report/page.html", "report/page.css")
absent = [name for name in needed if not (package / name).is_file()]
if absent:
    sys.exit(f"the wheel lacks {', '.join(absent)}")

names = [module.name for module in pkgutil.walk_packages(longrope.__path__, "longrope.", onerror=lambda name: None)]
broken = []
for name in names:
    try:
        importlib.import_module(name)
    except Exception:
        traceback.print_exc()
        broken.append(name)
if broken:
    sys.exit(f"{len(broken)} of {len(names)} modules do not import: {', '.join(broken)}")
print(f"longrope {longrope.__version__}: {len(names)} modules import with the core dependencies alone")
