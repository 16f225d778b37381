#!/usr/bin/env python3
"""Reads the timer's and the console's interrupts of boards' device trees, for the list in docs/boards.md.

It shares nothing with the hypervisor: blobs are read by the package `fdt` from PyPI, interrupts are followed by the rules of
Linux's of_irq_parse_one() and of_irq_parse_raw(), addresses by those of of_translate_address().

    python3 interrupts.py FOLDER VENDOR/BOARD.dtb...
"""

import sys

import fdt


def one(node, name, default=None):
    found = node.get_property(name)
    return default if found is None else found.value


def many(node, name):
    found = node.get_property(name)
    return None if found is None else list(getattr(found, "data", []))


def number(cells):
    return sum(cell << 32 * (len(cells) - 1 - i) for i, cell in enumerate(cells))


def enabled(node):
    while node is not None:
        if one(node, "status", "okay") not in ("okay", "ok"):
            return False
        node = node.parent
    return True


def phandles(root):
    found, nodes = {}, [root]
    while nodes:
        node = nodes.pop()
        for name in ("phandle", "linux,phandle"):
            if one(node, name) is not None:
                found.setdefault(one(node, name), node)
        nodes += node.nodes
    return found


def parent(node, handles):
    """of_irq_find_parent()."""
    while node is not None:
        handle = one(node, "interrupt-parent")
        node = node.parent if handle is None else handles.get(handle)
        if node is not None and node.get_property("#interrupt-cells") is not None:
            return node
    return None


def resolve(controller, address, specifier, handles):
    """of_irq_parse_raw(): the controller and what it is told, through nexus nodes' maps."""
    for _ in range(64):
        if controller.get_property("interrupt-controller") is not None:
            return controller, specifier
        entries = many(controller, "interrupt-map")
        if entries is None:
            controller = parent(controller, handles)
            if controller is None:
                return None
            continue
        width = one(controller, "#address-cells", 2)
        cells = one(controller, "#interrupt-cells")
        mask = many(controller, "interrupt-map-mask") or [0xFFFFFFFF] * (width + cells)
        wanted = [a & b for a, b in zip((address + [0] * width)[:width] + specifier, mask)]
        hit, i = None, 0
        while i < len(entries) and hit is None:
            key = entries[i : i + width + cells]
            i += width + cells
            to = handles[entries[i]]
            i += 1
            to_width, to_cells = one(to, "#address-cells", 0), one(to, "#interrupt-cells")
            if [a & b for a, b in zip(key, mask)] == wanted:
                hit = to, entries[i : i + to_width], entries[i + to_width : i + to_width + to_cells]
            i += to_width + to_cells
        if hit is None:
            return None
        controller, address, specifier = hit
    return None


def interrupts(node, handles):
    """of_irq_parse_one(), for all of them."""
    found, extended = [], many(node, "interrupts-extended")
    if extended is not None:
        i = 0
        while i < len(extended):
            to = handles[extended[i]]
            cells = one(to, "#interrupt-cells")
            found.append((to, extended[i + 1 : i + 1 + cells]))
            i += 1 + cells
    else:
        to, own = parent(node, handles), many(node, "interrupts") or []
        cells = one(to, "#interrupt-cells")
        found = [(to, own[i : i + cells]) for i in range(0, len(own), cells)]
    return [resolve(to, many(node, "reg") or [], specifier, handles) for to, specifier in found]


def translate(node):
    """of_translate_address(), of the first address."""
    bus = node.parent
    address = number(many(node, "reg")[: one(bus, "#address-cells", 2)])
    while bus.parent is not None:
        own, size, up = one(bus, "#address-cells", 2), one(bus, "#size-cells", 1), one(bus.parent, "#address-cells", 2)
        windows = many(bus, "ranges") or []
        for i in range(0, len(windows), own + up + size):
            start = number(windows[i : i + own])
            to = number(windows[i + own : i + own + up])
            if start <= address < start + number(windows[i + own + up : i + own + up + size]):
                address += to - start
                break
        bus = bus.parent
    return address


def intid(interrupt):
    specifier = interrupt[1]
    return {0: 32, 1: 16}[specifier[0]] + specifier[1]


def row(folder, name):
    with open(f"{folder}/{name}", "rb") as file:
        tree = fdt.parse_dtb(file.read())
    handles, nodes = phandles(tree.root), [tree.root]
    while not ("arm,armv8-timer" in (many(nodes[0], "compatible") or []) and enabled(nodes[0])):
        nodes = nodes[1:] + nodes[0].nodes
    timer = interrupts(nodes[0], handles)
    stdout = one(tree.get_node("/chosen"), "stdout-path") if tree.exist_node("/chosen") else None
    path = (stdout or "serial0").split(":")[0]
    uart = tree.get_node(path if path.startswith("/") else one(tree.get_node("/aliases"), path))
    lines = interrupts(uart, handles)
    line = intid(lines[0]) if lines and lines[0] and lines[0][0] is timer[0][0] else "no interrupt"
    numbers = " ".join(str(intid(interrupt)) for interrupt in timer)
    return f"| `{name}` | {numbers} | {line} | {translate(uart):#x} | {many(uart, 'compatible')[0]} |"


if __name__ == "__main__":
    for board in sys.argv[2:]:
        print(row(sys.argv[1], board))
