"""The start of a run: checks that every override means something, and lets errors end in one clear message."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import set_determinism
from tqdm import tqdm

from ..distributed import gathered, leave_processes
from ..errors import BasisPruneError, ConfigurationError
from ..failures import INTERRUPTED, explain_failure
from ..files import write_atomically
from ..redaction import format_error, install_redaction, remove_redaction, shown_text

__all__ = [
    "PATH_FLAGS",
    "RunStart",
    "check_keys",
    "is_on",
    "is_steps",
    "keep_one_tracked_config",
    "running_parser",
    "show_command",
    "start_run",
]

# "@key", "%key", and further levels behind "::" or "#", as monai.bundle writes references and macros
_REFERENCE = re.compile(r"[@%](\w+(?:(?:#|::)\w+)*)")
PATH_FLAGS = ("_dir", "_file", "_root")
"""How the names of keys end whose values name files and folders, whether these exist already or not."""

_RESERVED = {"imports", "initialize", "run", "finalize", "bundle_root", "save_execute_config"}


class RunStart:
    """The moment at which a run started.

    Attributes:
        time: seconds, of the clock that ``time.perf_counter`` reads; of a run that goes on from a checkpoint, earlier
            by what it had taken before.
        command: the command, without the folders that it names; see :func:`show_command`.
    """

    def __init__(self, command: str | None = None) -> None:
        self.time = time.perf_counter()
        self.command = show_command(sys.argv) if command is None else command

    def state_dict(self) -> dict[str, float]:
        """Return the seconds that the run has taken so far, for a checkpoint."""
        return {"seconds": time.perf_counter() - self.time}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Count the seconds until a checkpoint as well: the run started so much earlier."""
        self.time -= state["seconds"]


def start_run(
    seed: int | None = 0,
    redact_logs: bool | str = True,
    private_paths: Iterable[str | os.PathLike[str] | None] = (),
    command: str | None = None,
) -> RunStart:
    """Start a bundle's run: check its keys, set the seeds, and show our errors as a message instead of a traceback.

    To be called in ``initialize`` of a bundle's configuration.

    Args:
        seed: the seed of torch, numpy and MONAI's transforms; None leaves them as they are.
        redact_logs: whether to take what names a patient out of logs, warnings and tracebacks, those of other
            libraries too; see :func:`~monai_basisprune.redaction.install_redaction`, and :func:`is_on`.
        private_paths: the user's folders and files, to be taken out as well; None is left out.
        command: the command to record, without folders; by default that of this process.

    Raises:
        ConfigurationError: if the configuration or an override has a key that nothing uses.
    """
    if is_on("redact_logs", redact_logs):
        install_redaction(private_paths)
    else:
        remove_redaction()
    sys.excepthook = _end_with_error
    parser = running_parser()
    if parser is not None:
        _clean_tracked_config(parser)
        check_keys(parser.get())
    if seed is not None:
        set_determinism(seed)
    return RunStart(command)


def is_on(key: str, value: bool | str) -> bool:
    """Return whether a switch is on; a command line gives ``true`` and ``false`` as words, of which both are true.

    Args:
        key: what to call the switch in a message.
        value: True, False, or one of the words ``true`` and ``false`` in any case.

    Raises:
        ConfigurationError: if it is anything else.

    Example:
        >>> is_on("tensorboard", "false")
        False
    """
    word = str(value).lower()
    if word not in ("true", "false"):
        raise ConfigurationError(f"{key} must be true or false, got {value!r}: pass --{key} true or --{key} false.")
    return word == "true"


def check_keys(config: Mapping[str, Any]) -> None:
    """Check that every key of a bundle's configuration is used, at the top and in groups: a misspelt override never is.

    A key is used if another one refers to it, if MONAI itself looks for it, or if it is a list of steps to run. A
    group is a dictionary that makes no component; its components may stay unused, its plain values may not. Keys that
    start with an underscore are comments.

    Raises:
        ConfigurationError: naming every key that nothing uses, and the keys that are meant most likely.
    """
    references = [reference for text in _texts(config) for reference in _REFERENCE.findall(text)]
    used = _RESERVED.union(*(_prefixes(reference) for reference in references))
    unused = []
    for key, value in config.items():
        if key.startswith("_") or is_steps(value):
            continue
        if key not in used:
            unused.append(key)
        elif isinstance(value, Mapping) and "_target_" not in value and key not in references:
            plain = (name for name, part in value.items() if not isinstance(part, (Mapping, list)))
            unused += [f"{key}#{name}" for name in plain if f"{key}#{name}" not in used]
    if unused:
        known = sorted(key for key in config if key not in unused and not key.startswith("_"))
        lines = []
        for key in unused:
            close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join('--' + name for name in close)}?" if close else "no key is like it."
            lines.append(f"  - {key}: nothing in this configuration uses it; {hint}")
        raise ConfigurationError(
            "The configuration has keys that would be ignored; correct or remove them:\n"
            + "\n".join(lines)
            + f"\nKeys that can be set: {', '.join(known)}."
        )


def show_command(arguments: list[str]) -> str:
    """Return a command as text, with a placeholder for every folder and file outside a bundle's configuration.

    Folder and file names can hold names of patients, so they go into no report.
    """
    shown: list[str] = []
    flag = ""
    for argument in arguments[1:]:
        value, prefix = argument, ""
        if argument.startswith("-"):
            flag, equals, value = argument.partition("=")
            prefix = flag + equals
        if flag.endswith("config_file"):
            value = re.sub(r"[^'\"\[\],]+", lambda path: _short_path(path.group()), value)
        elif value and (flag.endswith(PATH_FLAGS) or _is_path(value)):
            value = f"<{flag.lstrip('-') or 'path'}>"
        shown.append(prefix + value)
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = module.name.removesuffix(".__main__") if module is not None else Path("".join(arguments[:1])).name
    if not name:
        return "a session of Python"
    quoted = [f'"{text}"' if "'" in text and not set('"$`\\\\') & set(text) else shlex.quote(text) for text in shown]
    several = os.environ.get("LOCAL_WORLD_SIZE")  # torchrun says to each process how many it started
    start = ["python"] if several is None else ["torchrun", f"--nproc_per_node={int(several)}"]
    return " ".join([*start, "-m", name, *quoted] if module else [name, *quoted])


def _short_path(path: str) -> str:
    """Keep the name of a configuration, and that of the folder where bundles keep theirs."""
    parts = [part for part in re.split(r"[/\\]", path) if part.strip()]
    return "/".join(parts[-2:] if parts[-2:-1] == ["configs"] else parts[-1:]) if parts else path


def _is_path(value: str) -> bool:
    if value.lstrip().startswith(("{", "[")):
        return "/" in value
    try:
        return "/" in value or "\\" in value or Path(value).exists()
    except (OSError, ValueError):  # too long for a name, or with characters that none can have
        return False


def running_parser() -> ConfigParser | None:
    """Return the parser that is evaluating the expression we were called from.

    MONAI gives expressions no way to their own configuration, and it accepts any override in silence.
    """
    for frame in inspect.stack():
        candidate = frame.frame.f_locals.get("self")
        if isinstance(candidate, ConfigParser):
            return candidate
    return None


def _clean_tracked_config(parser: ConfigParser) -> None:
    """Take the user's paths out of the configuration that MONAI has written for an experiment tracker, if it has."""
    written = parser.get("save_execute_config")
    if not isinstance(written, str):
        return
    joined = re.fullmatch(r"([^$].*) \+ '(/config_\d+_\d+\.json)'", written)
    if joined:  # MONAI writes an expression, which this is only where output_dir is one, and then tracks no file
        parser.ref_resolver.get_item("save_execute_config").update_config(joined[1] + joined[2])
    path = Path(str(parser.get_parsed_content("save_execute_config")))
    if path.is_file():  # of several processes, another one may be writing it right now
        write_atomically(path, json.dumps(_cleaned(parser.get()), indent=2, ensure_ascii=False) + "\n")


def keep_one_tracked_config() -> None:
    """Let the configuration for an experiment tracker be there once, though MONAI has written it in every process.

    To be called when the processes have joined; its name holds the second, so there can be one of each.
    """
    parser = running_parser()
    written = None if parser is None else parser.get("save_execute_config")
    path = Path(str(parser.get_parsed_content("save_execute_config"))) if parser and isinstance(written, str) else None
    names = gathered(None if path is None else path.name)
    if path is not None and path.name != names[0]:
        path.unlink(missing_ok=True)


def _cleaned(value: Any, key: str = "") -> Any:
    """Return a configuration with a placeholder for every value that names a folder or file of the user."""
    if isinstance(value, Mapping):
        return {name: _cleaned(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if not isinstance(value, str) or value.startswith(("@", "$", "%")):
        return value if not isinstance(value, str) else shown_text(value)
    return f"<{key or 'path'}>" if key.endswith(PATH_FLAGS) or _is_path(value) else shown_text(value)


def _prefixes(reference: str) -> set[str]:
    """Return what a reference uses: ``a#b#c`` uses ``a``, ``a#b`` and ``a#b#c``."""
    parts = re.split("#|::", reference)
    return {"#".join(parts[: length + 1]) for length in range(len(parts))}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def is_steps(value: Any) -> bool:
    """Tell whether a value of a configuration is a list of steps to run."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) and v.startswith("$") for v in value)


def _end_with_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show what ended the run, and leave the other processes, so that this one is not aborted with a dump of memory."""
    for bar in list(getattr(tqdm, "_instances", ())):  # an open one would be drawn over the message
        bar.close()
    _show_error(kind, error, trace)
    sys.stderr.flush()
    leave_processes()


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the message of our own error at the end of a chain; everything else as Python does, redacted."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, BasisPruneError):
            print(f"\nmonai_basisprune: {shown_text(str(link))}", file=sys.stderr)
            return
        link = link.__cause__
    reason = explain_failure(error, running=False)
    if issubclass(kind, KeyboardInterrupt):
        print(f"\nmonai_basisprune: {INTERRUPTED}", file=sys.stderr)
    elif reason is not None:
        print(f"\nmonai_basisprune: {reason}", file=sys.stderr)
    else:
        print(format_error(kind, error, trace), end="", file=sys.stderr)
