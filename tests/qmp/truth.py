"""Holds all that a machine says against the schema which it gives itself. Part of run.py's suite."""

from qemu.qmp import QMPClient

ERROR_CLASSES = ("GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound", "KVMMissingCap")


class Untrue(AssertionError):
    """The machine has said what its schema does not allow."""


JSON_TYPES = {
    "string": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "value": lambda value: True,
}


class Schema:
    """The answer to `query-qmp-schema`, ready to be looked up in."""

    def __init__(self, entries: list[dict]):
        self.entries = {entry["name"]: entry for entry in entries}
        assert len(self.entries) == len(entries), "a name is in the schema twice"

    def of_kind(self, kind: str) -> set[str]:
        return {name for name, entry in self.entries.items() if entry["meta-type"] == kind}

    def check_reply(self, command: str, reply: dict) -> None:
        """A reply that belongs to a command."""
        self.check_envelope(reply)
        if "return" not in reply:
            return
        entry = self.entries.get(command)
        if not entry or entry["meta-type"] != "command":
            raise Untrue(f"{command} has an answer, and is not in the schema")
        self.check(command, entry["ret-type"], reply["return"])

    def check_envelope(self, reply: dict) -> None:
        """A reply of which the command is not known."""
        if "error" in reply:
            error = reply["error"]
            if set(error) != {"class", "desc"} or error["class"] not in ERROR_CLASSES or not error["desc"]:
                raise Untrue(f"{error} is no error")
        if len({"return", "error"} & set(reply)) != 1 or set(reply) - {"return", "error", "id"}:
            raise Untrue(f"{reply} is no reply")

    def check_event(self, event: dict) -> None:
        name = event["event"]
        entry = self.entries.get(name)
        if not entry or entry["meta-type"] != "event":
            raise Untrue(f"event {event} is not in the schema")
        if set(event) - {"event", "data", "timestamp"}:
            raise Untrue(f"{event} is no event")
        stamp = event.get("timestamp", {})
        if set(stamp) != {"seconds", "microseconds"} or not all(map(JSON_TYPES["int"], stamp.values())):
            raise Untrue(f"{event} has no time")
        self.check(name, entry["arg-type"], event.get("data", {}))

    def check(self, place: str, kind: str, value) -> None:
        entry = self.entries.get(kind)
        if not entry:
            raise Untrue(f"{place}: type {kind} is missing")
        match entry["meta-type"]:
            case "builtin":
                if not JSON_TYPES[entry["json-type"]](value):
                    raise Untrue(f"{place}: {value!r} is not {kind}")
            case "enum":
                if value not in [member["name"] for member in entry["members"]]:
                    raise Untrue(f"{place}: {value!r} is not one of {entry['values']}")
            case "array":
                if not isinstance(value, list):
                    raise Untrue(f"{place}: {value!r} is not a list")
                for index, item in enumerate(value):
                    self.check(f"{place}[{index}]", entry["element-type"], item)
            case "alternate":
                if not any(self.fits(place, member["type"], value) for member in entry["members"]):
                    raise Untrue(f"{place}: {value!r} is not any of the alternatives")
            case "object":
                self.check_object(place, entry, value)
            case other:
                raise Untrue(f"{place}: {kind} is of kind {other}")

    def fits(self, place: str, kind: str, value) -> bool:
        try:
            self.check(place, kind, value)
        except Untrue:
            return False
        return True

    def check_object(self, place: str, entry: dict, value) -> None:
        if not isinstance(value, dict):
            raise Untrue(f"{place}: {value!r} is not an object")
        members = self.members(entry, value)
        for name, member in members.items():
            if name in value:
                self.check(f"{place}.{name}", member["type"], value[name])
            elif "default" not in member:
                raise Untrue(f"{place}: member '{name}' is missing")
        for name in value:
            if name not in members:
                raise Untrue(f"{place}: member '{name}' is unexpected")

    def members(self, entry: dict, value: dict) -> dict[str, dict]:
        """The members of an object's type, those of its variant among them."""
        found = {member["name"]: member for member in entry["members"]}
        for variant in entry.get("variants", ()):
            if variant["case"] == value.get(entry["tag"]):
                found |= self.members(self.entries[variant["type"]], value)
        return found


class Client(QMPClient):
    """The public client, which hears all and lets nothing untrue pass."""

    # Commands that some client has had a good answer to, and that some machine's schema had.
    answered: set[str] = set()
    announced: set[str] = set()

    def __init__(self, name: str):
        super().__init__(name)
        self.schema: Schema | None = None
        self.untrue: list[Untrue] = []

    async def connect(self, *arguments) -> None:
        await super().connect(*arguments)
        self.schema = Schema(await self.execute("query-qmp-schema"))
        self.schema.check_reply("query-qmp-schema", {"return": list(self.schema.entries.values())})
        Client.announced |= self.schema.of_kind("command")

    async def _execute(self, msg, assign_id: bool = True):
        reply = await super()._execute(msg, assign_id)
        if "return" in reply:
            Client.answered.add(msg.get("execute") or msg.get("exec-oob"))
        if self.schema:
            self.note(self.schema.check_reply, msg.get("execute") or msg.get("exec-oob"), dict(reply))
        return reply

    async def _on_message(self, msg) -> None:
        if self.schema and "event" in msg:
            # Raised where the test looks, not in the client's own task.
            self.note(self.schema.check_event, dict(msg), later=True)
        await super()._on_message(msg)

    def note(self, check, *what, later: bool = False) -> None:
        try:
            check(*what)
        except Untrue as untrue:
            self.untrue.append(untrue)
            if not later:
                raise

    def check_all(self) -> None:
        """Fails if anything untrue has been heard."""
        if self.untrue:
            raise self.untrue[0]
