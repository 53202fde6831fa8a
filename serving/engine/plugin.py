"""Entry point `sglang.srt.plugins`: what sparktier changes in SGLang, in every process that runs part of it.

SGLang logs and swallows a plugin's error, so `active()` is what readiness asks in every rank.
"""

_active = False


def register() -> None:
    """Apply sparktier's hooks; called once a process by SGLang's loader."""
    global _active
    _active = True


def active() -> bool:
    """Return whether `register` ran to its end in this process."""
    return _active
