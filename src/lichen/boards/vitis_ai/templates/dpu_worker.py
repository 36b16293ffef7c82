"""Runs compiled networks on the DPU through VART for another process: `run.py` starts it.

    python3 dpu_worker.py THREADS NAME=FILE.xmodel ..

VART's Python modules belong to the board image's own Python (3.9 in the Vitis AI 3.0 images),
which is older than what lichen needs, so the two talk through pipes. Runs from Python 3.7 on; needs
NumPy, xir and vart only. Each thread has one runner for each subgraph.

stdout: a line of JSON that lists each network's tensors; then for each request an answer. A
request is a line {"id": 1, "network": "g_a"} and the int8 bytes of all inputs, (H, W, C); an answer
is a line {"id": 1, "bytes": [..]} and those of all outputs, or {"id": 1, "error": ".."}.
"""

import json
import queue
import sys
import threading

import numpy

try:
    import vart
    import xir
except ImportError as missing:
    sys.exit(
        f"dpu_worker.py: error: {missing}: run it with the Python of the board's Vitis AI image "
        "(run.py --dpu-python /usr/bin/python3)"
    )


def dpu_subgraph(path):
    """Read an xmodel and give (graph, its DPU subgraph); there must be one."""
    graph = xir.Graph.deserialize(path)
    children = graph.get_root_subgraph().toposort_child_subgraph()
    found = [s for s in children if s.has_attr("device") and s.get_attr("device").upper() == "DPU"]
    if len(found) != 1:
        raise RuntimeError(
            f"{path} has {len(found)} DPU subgraphs, expected one: an operation went to the CPU; "
            "look at the compiler's log"
        )
    return graph, found[0]


def described(tensor):
    """A tensor of a runner as JSON holds it."""
    return {
        "name": tensor.name,
        "dims": [int(n) for n in tensor.dims],
        "fix_point": int(tensor.get_attr("fix_point")),
    }


class Runners:
    """The runners of one thread."""

    def __init__(self, subgraphs):
        self.by_name = {
            name: vart.Runner.create_runner(subgraph, "run") for name, subgraph in subgraphs.items()
        }

    def describe(self):
        return {
            name: {
                "inputs": [described(t) for t in runner.get_input_tensors()],
                "outputs": [described(t) for t in runner.get_output_tensors()],
            }
            for name, runner in self.by_name.items()
        }

    def run(self, name, inputs):
        """Run a network on flat int8 arrays; gives its outputs."""
        runner = self.by_name[name]
        given = [
            numpy.ascontiguousarray(x.reshape(tuple(t.dims)))
            for x, t in zip(inputs, runner.get_input_tensors())
        ]
        results = [
            numpy.empty(tuple(t.dims), dtype=numpy.int8, order="C")
            for t in runner.get_output_tensors()
        ]
        runner.wait(runner.execute_async(given, results))
        return results


class Answers:
    """Writes answers, one at a time."""

    def __init__(self, stream):
        self.stream, self.lock = stream, threading.Lock()

    def write(self, head, arrays=()):
        with self.lock:
            self.stream.write(json.dumps(head).encode() + b"\n")
            for array in arrays:
                self.stream.write(array.tobytes())
            self.stream.flush()


def work(runners, requests, answers):
    """Answer requests until there is None."""
    while True:
        request = requests.get()
        if request is None:
            return
        number, name, inputs = request
        try:
            results = runners.run(name, inputs)
            answers.write({"id": number, "bytes": [r.nbytes for r in results]}, results)
        except Exception as error:
            answers.write({"id": number, "error": f"{type(error).__name__}: {error}"})


def main():
    threads = int(sys.argv[1])
    graphs, subgraphs = [], {}
    for argument in sys.argv[2:]:
        name, path = argument.split("=", 1)
        graph, subgraphs[name] = dpu_subgraph(path)
        graphs.append(graph)  # a subgraph lives as long as its graph
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may write there
    pool = [Runners(subgraphs) for _ in range(threads)]
    networks = pool[0].describe()
    answers = Answers(stdout)
    answers.write({"networks": networks})
    requests = queue.Queue()
    workers = [threading.Thread(target=work, args=(r, requests, answers)) for r in pool]
    for worker in workers:
        worker.start()
    try:
        for line in iter(stdin.readline, b""):
            head = json.loads(line.decode())
            inputs = []
            for entry in networks[head["network"]]["inputs"]:
                size = int(numpy.prod(entry["dims"]))
                data = stdin.read(size)
                if len(data) != size:
                    return
                inputs.append(numpy.frombuffer(data, dtype=numpy.int8))
            requests.put((head["id"], head["network"], inputs))
    finally:
        for _ in workers:
            requests.put(None)
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
