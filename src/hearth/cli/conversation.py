"""Conversation: what was said, and the slash commands that change it. Knows no terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hearth.core.errors import ConfigError
from hearth.core.paths import home_expanded

HELP = """\
/help                 this text
/clear                forget the conversation (the system prompt stays)
/system TEXT          set the system prompt; without a text, show it
/set                  show the settings
/set NAME VALUE       such as: /set temperature 0.2; VALUE default takes it back
/save FILE            write the conversation to a JSON file
/load FILE            go on with one that was saved
/quit                 end (or Ctrl-D)
A line that ends in \\ goes on in the next one; so does everything between two lines of \"\"\".
Ctrl-C stops the answer, not the program."""

SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "min_tokens",
    "ignore_eos",
    "priority",
    "chat_template_kwargs",
)


class QuitError(Exception):
    """The user wants to leave."""


class Conversation:
    """Messages and settings of one chat with one model."""

    def __init__(self, model: str, system: str = "", settings: Mapping[str, Any] = {}) -> None:
        self.model = model
        self.system = system
        self.settings: dict[str, Any] = dict(settings)
        self.messages: list[dict[str, str]] = []
        self._commands: dict[str, Callable[[str], str]] = {
            "help": lambda _: HELP,
            "clear": self._clear,
            "system": self._system,
            "set": self._set,
            "save": self._save,
            "load": self._load,
            "quit": self._quit,
            "exit": self._quit,
        }

    def body(self) -> dict[str, Any]:
        """The request for the next answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"model": self.model, "messages": [*system, *self.messages], **self.settings}

    def say(self, text: str) -> None:
        """The user's turn."""
        self.messages.append({"role": "user", "content": text})

    def answered(self, text: str) -> None:
        """The model's turn; a question without any answer is taken back."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def command(self, line: str) -> str:
        """Carries out `/name rest`; returns what to show.

        Raises QuitError, or ConfigError where it cannot be done.
        """
        name, _, rest = line.removeprefix("/").partition(" ")
        run = self._commands.get(name)
        if run is None:
            raise ConfigError(f"there is no command /{name}", hint="/help lists them")
        return run(rest.strip())

    def _clear(self, _: str) -> str:
        self.messages.clear()
        return "the conversation is forgotten"

    def _system(self, text: str) -> str:
        if not text:
            return self.system or "there is no system prompt"
        self.system = text
        return "the system prompt is set"

    def _set(self, text: str) -> str:
        name, _, word = text.partition(" ")
        if not name:
            return "\n".join(f"{n} {json.dumps(v)}" for n, v in self.settings.items()) or (
                f"nothing is set; permitted: {', '.join(SETTINGS)}"
            )
        if name not in SETTINGS:
            raise ConfigError(f"/set {name}: not a setting (permitted: {', '.join(SETTINGS)})")
        if not word.strip():
            raise ConfigError(f"/set {name}: a value is missing", hint=f"/set {name} 1")
        if word.strip() == "default":
            self.settings.pop(name, None)
            return f"{name} is the server's default again"
        self.settings[name] = _value(word.strip())
        return f"{name} is {json.dumps(self.settings[name])}"

    def _save(self, name: str) -> str:
        state = {"system": self.system, "settings": self.settings, "messages": self.messages}
        text = json.dumps({"model": self.model, **state}, ensure_ascii=False, indent=1)
        try:
            _path(name).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{name} cannot be written: {error.strerror}") from error
        return f"saved {len(self.messages)} messages to {name}"

    def _load(self, name: str) -> str:
        try:
            state = json.loads(_path(name).read_text(encoding="utf-8"))
            messages = [
                {"role": str(m["role"]), "content": m["content"]} for m in state["messages"]
            ]
            settings = {str(n): v for n, v in dict(state.get("settings", {})).items()}
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{name} is not a saved conversation") from error
        self.messages, self.settings = messages, settings
        self.system = str(state.get("system", ""))
        return f"loaded {len(messages)} messages"

    def _quit(self, _: str) -> str:
        raise QuitError


def _value(word: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def _path(name: str) -> Path:
    if not name:
        raise ConfigError("a file name is missing", hint="/save chat.json")
    return home_expanded(name)
