"""A pickle read as what it is, a program for a stack machine, by a machine that can run nothing.

`pickle.loads` looks up what the file names and calls it. Here a name stays a name (`Named`), and a
call is answered from a table of our own functions (`rules`); no module is imported, no attribute
looked up, nothing of the file is called. What is not in the table is refused by its name, even if
it would never be called. Free of torch.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias

from advdiff_core.errors import AdvdiffError, DataError
from advdiff_core.pickles.objects import Inert, Named
from advdiff_core.pickles.rules import call, is_known, known_name

__all__ = ["MAX_STEPS", "PickleMachine", "read_pickle", "refusal"]

#: Instructions run: a checkpoint of 2,000 tensors with the state of its optimizer takes 200,000.
MAX_STEPS = 4_000_000
_MAX_INT_BITS = 60

Persistent: TypeAlias = Callable[[Any], Any]

#: Instructions that push their argument.
_PUSH = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT",
})  # fmt: skip
_NONE = frozenset({"PROTO", "FRAME"})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(file: BinaryIO, *, where: str, persistent: Persistent | None = None) -> Any:
    """The value of the pickle at the position of `file`, which is left behind its end.

    Args:
        file: Open for reading.
        where: Its name, for messages.
        persistent: Answers the persistent ids of torch's formats; none are accepted if None.

    Raises:
        DataError: Q01 for a name or instruction that is not read, Q10 for anything malformed or
            beyond the limits.
    """
    try:
        return PickleMachine(where, persistent).run(file)
    except AdvdiffError:
        raise
    except Exception as error:
        # Whatever a damaged program does to the stack ends here: nothing else can be affected.
        message = f"is not a readable pickle: {type(error).__name__}: {error}"
        fix = "fetch the file again; compare its size and hash with those its authors give"
        raise DataError(message, code="Q10", where=where, fix=fix) from error


def refusal(what: str, where: str) -> DataError:
    """The error for something in a pickle that is not read."""
    fix = (
        "nothing was run; if you trust its authors, save the weights alone with their code, "
        "as safetensors or torch.save(model.state_dict())"
    )
    return DataError(f"the pickle {what}", code="Q01", where=where, fix=fix)


class PickleMachine:
    """One run over one pickle.

    Args:
        where: Name of the file, for messages.
        persistent: Answers persistent ids.
    """

    def __init__(self, where: str, persistent: Persistent | None = None) -> None:
        self.where = where
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        """Run to STOP and return what is on the stack then."""
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if steps > MAX_STEPS:
                message = f"the pickle has more than {MAX_STEPS:,} instructions"
                raise DataError(message, code="Q10", where=self.where)
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        (found,) = self.stack
        if self.marks:
            raise ValueError("values are left over at its end")
        return found

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _PUTS:
            self.memo[_bounded(argument)] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name in _TUPLES:
            self.stack[-_TUPLES[name] :] = [tuple(self._last(_TUPLES[name]))]
        elif name not in _NONE:
            self._act(name, argument)

    def _act(self, name: str, argument: Any) -> None:
        """An instruction with a method of its own."""
        method = _ACTIONS.get(name)
        if method is None:
            raise refusal(f"uses the instruction {name}, which no checkpoint needs", self.where)
        method(self, argument)

    def _last(self, count: int) -> list[Any]:
        found = self.stack[-count:]
        if len(found) < count:
            raise IndexError("the stack is too short")
        return found

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _tuple(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _list(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(items)

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError(f"append to a {type(target).__name__}")
        target.extend(items)

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._update(items)

    def _setitem(self, _: Any) -> None:
        pair = self._last(2)
        del self.stack[-2:]
        self._update(pair)

    def _setitems(self, _: Any) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise TypeError(f"set a key of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_hashable(key)] = value

    def _additems(self, _: Any) -> None:
        items, target = self._since_mark(), self.stack[-1]
        if type(target) is not set:
            raise TypeError(f"add to a {type(target).__name__}")
        target.update(map(_hashable, items))

    def _frozenset(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(frozenset(map(_hashable, items)))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self._named(module, name))

    def _stack_global(self, _: Any) -> None:
        module, name = self._last(2)
        del self.stack[-2:]
        if type(module) is not str or type(name) is not str:
            raise TypeError("a global whose name is no text")
        self.stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Named:
        path = known_name(module, name)
        if not is_known(path):
            text = f"names {path}, which is not on the list of harmless names"
            raise refusal(text, self.where)
        return Named(path)

    def _reduce(self, _: Any) -> None:
        function, arguments = self._last(2)
        del self.stack[-2:]
        self._call(function, arguments)

    def _newobj(self, argument: Any) -> None:
        self._reduce(argument)

    def _newobj_ex(self, _: Any) -> None:
        function, arguments, keywords = self._last(3)
        del self.stack[-3:]
        if keywords:
            raise refusal("makes an object by keyword, which no checkpoint needs", self.where)
        self._call(function, arguments)

    def _obj(self, _: Any) -> None:
        function, *arguments = self._since_mark()
        self._call(function, tuple(arguments))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        named = self._named(module, name)
        self._call(named, tuple(self._since_mark()))

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Named):
            raise refusal(f"calls a {type(function).__name__}", self.where)
        if type(arguments) is not tuple:
            raise TypeError("arguments that are no tuple")
        self.stack.append(call(function.path, arguments, self.where))

    def _build(self, _: Any) -> None:
        target, state = self._last(2)
        del self.stack[-1:]
        if isinstance(target, Inert):
            target.state = state
        elif type(target) is not dict:
            # A dict's own attributes, such as `_metadata` of a state dict, are not needed.
            raise refusal(f"sets the state of a {type(target).__name__}", self.where)

    def _persid(self, argument: str) -> None:
        self.stack.append(self._answer(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self._answer(self.stack.pop()))

    def _answer(self, key: Any) -> Any:
        if self.persistent is None:
            raise refusal("refers to data outside of it", self.where)
        return self.persistent(key)


_ACTIONS: dict[str, Callable[[PickleMachine, Any], None]] = {
    "MARK": PickleMachine._mark, "POP": PickleMachine._pop, "POP_MARK": PickleMachine._pop_mark,
    "DUP": PickleMachine._dup, "MEMOIZE": PickleMachine._memoize, "TUPLE": PickleMachine._tuple,
    "LIST": PickleMachine._list, "APPEND": PickleMachine._append,
    "APPENDS": PickleMachine._appends, "DICT": PickleMachine._dict,
    "SETITEM": PickleMachine._setitem, "SETITEMS": PickleMachine._setitems,
    "ADDITEMS": PickleMachine._additems, "FROZENSET": PickleMachine._frozenset,
    "GLOBAL": PickleMachine._global, "STACK_GLOBAL": PickleMachine._stack_global,
    "REDUCE": PickleMachine._reduce, "NEWOBJ": PickleMachine._newobj,
    "NEWOBJ_EX": PickleMachine._newobj_ex, "OBJ": PickleMachine._obj,
    "INST": PickleMachine._inst, "BUILD": PickleMachine._build,
    "PERSID": PickleMachine._persid, "BINPERSID": PickleMachine._binpersid,
}  # fmt: skip


def _bounded(number: Any) -> int:
    """An index of the memo; others than these would all fall into one slot of the table."""
    if type(number) is not int or number.bit_length() > _MAX_INT_BITS:
        raise ValueError(f"{type(number).__name__} as a place in the memo")
    return number


def _hashable(key: Any) -> Any:
    """A key that can be hashed without recursion and in no time."""
    if type(key) is tuple:
        return tuple(_atom(part) for part in key)
    return _atom(key)


def _atom(key: Any) -> Any:
    if isinstance(key, Named) or key is None or type(key) in (str, bytes, bool, float):
        return key
    return _bounded(key)
