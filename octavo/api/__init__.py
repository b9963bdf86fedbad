"""The verbs. Each has the name and arguments of its command and returns a frozen record; here the rooms meet."""

from octavo.api.compress import compress
from octavo.api.doctor import doctor
from octavo.api.export import export
from octavo.api.fit import fit
from octavo.api.inspect import inspect
from octavo.api.load import load
from octavo.api.run import run
from octavo.api.verify import verify

__all__ = ["compress", "doctor", "export", "fit", "inspect", "load", "run", "verify"]
