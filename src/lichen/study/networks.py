"""Networks that others have timed on a DPU, as lists of steps, to check the cycle model with.

Written from the publications, at the sizes of the Vitis AI model zoo; batch normalisations are
folded, ReLUs fused. Each generator names its paper. The subgraphs of learned codecs are those of
CedricLeon/SAR_DDC_FPGA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from lichen.study.dpu import Step, resident


@dataclass(frozen=True)
class Map:
    """A feature map. bytes: of it, 8 bits each; source: the step that makes it, -1: the input."""

    rows: int
    columns: int
    channels: int

    @property
    def size(self) -> int:
        return self.rows * self.columns * self.channels


@dataclass
class Net:
    """Builds a list of steps. `same` padding, as TensorFlow's, unless a layer says otherwise."""

    steps: list[Step] = field(default_factory=list)

    def _step(
        self, kind: str, x: Map, y: Map, kernel: tuple[int, int], stride: int, also: int = 0
    ) -> Map:
        first = not self.steps
        loads = 0 if resident(x.size) and not first else x.size
        saves = 0 if resident(y.size) else y.size
        before = self.steps[-1] if self.steps else None
        if kind == "pool" and before is not None and before.saves == loads > 0:
            # works on what was about to be saved
            self.steps[-1], loads = replace(before, saves=0), 0
        name = f"{len(self.steps)}"
        self.steps.append(
            Step(
                name, kind, y.rows, y.columns, x.channels, y.channels, kernel, stride,  # type: ignore[arg-type]
                loads + also, saves, first and x.channels <= 4,
            )
        )  # fmt: skip
        return y

    def conv(
        self, x: Map, outputs: int, k: int | tuple[int, int], stride: int = 1, valid: bool = False
    ) -> Map:
        """Convolution; `valid`: no padding."""
        kh, kw = (k, k) if isinstance(k, int) else k
        rows, columns = x.rows - (kh - 1) * valid, x.columns - (kw - 1) * valid
        y = Map(-(-rows // stride), -(-columns // stride), outputs)
        return self._step("conv", x, y, (kh, kw), stride)

    def deconv(self, x: Map, outputs: int, k: int, stride: int) -> Map:
        """Transposed convolution."""
        y = Map(x.rows * stride, x.columns * stride, outputs)
        return self._step("deconv", x, y, (k, k), stride)

    def depthwise(self, x: Map, k: int, stride: int = 1) -> Map:
        """Depthwise convolution."""
        y = Map(-(-x.rows // stride), -(-x.columns // stride), x.channels)
        return self._step("depthwise", x, y, (k, k), stride)

    def pool(self, x: Map, k: int, stride: int, valid: bool = False) -> Map:
        """Pooling."""
        less = (k - 1) * valid
        y = Map(-(-(x.rows - less) // stride), -(-(x.columns - less) // stride), x.channels)
        return self._step("pool", x, y, (k, k), stride)

    def mean(self, x: Map) -> Map:
        """Global average pooling."""
        y = Map(1, 1, x.channels)
        return self._step("pool", x, y, (x.rows, x.columns), 1)

    def add(self, x: Map, skip: Map) -> Map:
        """Sum of the last step's output and a skip: the last step saves the sum instead."""
        loads = 0 if resident(skip.size) else skip.size
        name = f"{len(self.steps)}"
        self.steps.append(Step(name, "add", x.rows, x.columns, x.channels, x.channels, loads=loads))
        return x

    @staticmethod
    def concat(*maps: Map) -> Map:
        """Along channels: no work, its inputs are saved beside one another."""
        return Map(maps[0].rows, maps[0].columns, sum(m.channels for m in maps))


def resnet(blocks: tuple[int, ...], style: str, basic: bool = False) -> list[Step]:
    """He 2016a, "Deep residual learning", table 1, at 224.

    style: where a stage halves the size: "first1" in the first 1x1 (He; Keras), "first3" in the
    first 3x3 (torchvision), "last3" in the 3x3 of the last block (TF-Slim).
    """
    net = Net()
    x = net.pool(net.conv(Map(224, 224, 3), 64, 7, 2), 3, 2)
    for stage, count in enumerate(blocks):
        width = 64 << stage
        outputs = width if basic else 4 * width
        for number in range(count):
            halves = stage > 0 and number == 0
            if style == "last3":
                halves = stage < len(blocks) - 1 and number == count - 1
            stride = 2 if halves else 1
            skip = x
            if x.channels != outputs or (halves and style != "last3"):
                skip = net.conv(x, outputs, 1, stride)
            elif halves:
                skip = net.pool(x, 1, stride)
            if basic:
                x = net.conv(net.conv(x, outputs, 3, stride), outputs, 3)
            else:
                in_first = style == "first1"
                y = net.conv(x, width, 1, stride if in_first else 1)
                y = net.conv(y, width, 3, 1 if in_first else stride)
                x = net.conv(y, outputs, 1)
            x = net.add(x, skip)
    net.conv(net.mean(x), 1000, 1)
    return net.steps


def vgg(convs: tuple[int, ...]) -> list[Step]:
    """Simonyan 2015, "Very deep convolutional networks", table 1."""
    net, x = Net(), Map(224, 224, 3)
    for stage, count in enumerate(convs):
        for _ in range(count):
            x = net.conv(x, min(64 << stage, 512), 3)
        x = net.pool(x, 2, 2)
    x = net.conv(x, 4096, 7, valid=True)
    net.conv(net.conv(x, 4096, 1), 1000, 1)
    return net.steps


def inception_v1() -> list[Step]:
    """Szegedy 2015, "Going deeper with convolutions", table 1; 3x3 for 5x5, as in TF-Slim."""
    net = Net()
    x = net.pool(net.conv(Map(224, 224, 3), 64, 7, 2), 3, 2)
    x = net.pool(net.conv(net.conv(x, 64, 1), 192, 3), 3, 2)
    table = (
        (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None,
        (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), None,
        (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
    )  # fmt: skip
    for row in table:
        if row is None:
            x = net.pool(x, 3, 2)
            continue
        a, b1, b3, c1, c3, d = row
        x = net.concat(
            net.conv(x, a, 1),
            net.conv(net.conv(x, b1, 1), b3, 3),
            net.conv(net.conv(x, c1, 1), c3, 3),
            net.conv(net.pool(x, 3, 1), d, 1),
        )
    net.conv(net.mean(x), 1001, 1)
    return net.steps


def inception_v3() -> list[Step]:
    """Szegedy 2016, "Rethinking the inception architecture", table 1, at 299; as in TF-Slim."""
    net = Net()
    x = net.conv(Map(299, 299, 3), 32, 3, 2, valid=True)
    x = net.conv(net.conv(x, 32, 3, valid=True), 64, 3)
    x = net.conv(net.pool(x, 3, 2, valid=True), 80, 1)
    x = net.pool(net.conv(x, 192, 3, valid=True), 3, 2, valid=True)
    for pooled in (32, 64, 64):  # 35 x 35
        c = net.conv(net.conv(net.conv(x, 64, 1), 96, 3), 96, 3)
        b = net.conv(net.conv(x, 48, 1), 64, 5)
        x = net.concat(net.conv(x, 64, 1), b, c, net.conv(net.pool(x, 3, 1), pooled, 1))
    b = net.conv(net.conv(net.conv(x, 64, 1), 96, 3), 96, 3, 2, valid=True)
    a = net.conv(x, 384, 3, 2, valid=True)
    x = net.concat(a, b, net.pool(x, 3, 2, valid=True))
    for n in (128, 160, 160, 192):  # 17 x 17
        b = net.conv(net.conv(net.conv(x, n, 1), n, (1, 7)), 192, (7, 1))
        c = net.conv(net.conv(net.conv(x, n, 1), n, (7, 1)), n, (1, 7))
        c = net.conv(net.conv(c, n, (7, 1)), 192, (1, 7))
        x = net.concat(net.conv(x, 192, 1), b, c, net.conv(net.pool(x, 3, 1), 192, 1))
    b = net.conv(net.conv(net.conv(x, 192, 1), 192, (1, 7)), 192, (7, 1))
    b = net.conv(b, 192, 3, 2, valid=True)
    a = net.conv(net.conv(x, 192, 1), 320, 3, 2, valid=True)
    x = net.concat(a, b, net.pool(x, 3, 2, valid=True))
    for _ in range(2):  # 8 x 8
        b = net.conv(x, 384, 1)
        c = net.conv(net.conv(x, 448, 1), 384, 3)
        x = net.concat(
            net.conv(x, 320, 1),
            net.conv(b, 384, (1, 3)), net.conv(b, 384, (3, 1)),
            net.conv(c, 384, (1, 3)), net.conv(c, 384, (3, 1)),
            net.conv(net.pool(x, 3, 1), 192, 1),
        )  # fmt: skip
    net.conv(net.mean(x), 1001, 1)
    return net.steps


def mobilenet_v1(size: int, width: float) -> list[Step]:
    """Howard 2017, "MobileNets", table 1."""
    net = Net()
    x = net.conv(Map(size, size, 3), int(32 * width), 3, 2)
    for outputs, stride in (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
        *[(512, 1)] * 5, (1024, 2), (1024, 1),
    ):  # fmt: skip
        x = net.conv(net.depthwise(x, 3, stride), int(outputs * width), 1)
    net.conv(net.mean(x), 1001, 1)
    return net.steps


def mobilenet_v2(width: float) -> list[Step]:
    """Sandler 2018, "MobileNetV2", table 2, at 224; channels are multiples of 8."""

    def scaled(channels: int) -> int:
        rounded = max(8, int(channels * width + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * channels * width else rounded

    net = Net()
    x = net.conv(Map(224, 224, 3), scaled(32), 3, 2)
    for t, c, n, s in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for number in range(n):
            y = net.conv(x, t * x.channels, 1) if t > 1 else x
            y = net.depthwise(y, 3, s if number == 0 else 1)
            y = net.conv(y, scaled(c), 1)
            x = net.add(y, x) if number else y
    net.conv(net.mean(net.conv(x, max(1280, scaled(1280)), 1)), 1001, 1)
    return net.steps


def squeezenet() -> list[Step]:
    """Iandola 2016, "SqueezeNet", version 1.1 (torchvision), at 224."""
    net = Net()
    x = net.pool(net.conv(Map(224, 224, 3), 64, 3, 2, valid=True), 3, 2, valid=True)
    for squeeze, expand in ((16, 64), (16, 64), (0, 0), (32, 128), (32, 128), (0, 0),
                            (48, 192), (48, 192), (64, 256), (64, 256)):  # fmt: skip
        if not squeeze:
            x = net.pool(x, 3, 2, valid=True)
            continue
        y = net.conv(x, squeeze, 1)
        x = net.concat(net.conv(y, expand, 1), net.conv(y, expand, 3))
    net.mean(net.conv(x, 1000, 1))
    return net.steps


def yolo_v3(classes: int = 20) -> list[Step]:
    """Redmon 2018, "YOLOv3": Darknet-53 and three heads, at 416."""
    net = Net()
    x = net.conv(Map(416, 416, 3), 32, 3)
    kept = []
    for width, count in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        x = net.conv(x, width, 3, 2)
        for _ in range(count):
            x = net.add(net.conv(net.conv(x, width // 2, 1), width, 3), x)
        kept.append(x)
    for level, width in enumerate((512, 256, 128)):
        for _ in range(2):
            x = net.conv(net.conv(x, width, 1), 2 * width, 3)
        branch = net.conv(x, width, 1)
        net.conv(net.conv(branch, 2 * width, 3), 3 * (classes + 5), 1)
        if level < 2:
            y = net.conv(branch, width // 2, 1)
            x = net.concat(Map(2 * y.rows, 2 * y.columns, y.channels), kept[3 - level])
    return net.steps


def tiny_yolo_v3(classes: int = 80) -> list[Step]:
    """Redmon 2018, "YOLOv3", its tiny configuration, at 416."""
    net, x = Net(), Map(416, 416, 3)
    route = x
    for width in (16, 32, 64, 128, 256, 512):
        x = net.conv(x, width, 3)
        route = x if width == 256 else route
        x = net.pool(x, 2, 1 if width == 512 else 2)
    branch = net.conv(net.conv(x, 1024, 3), 256, 1)
    net.conv(net.conv(branch, 512, 3), 3 * (classes + 5), 1)
    y = net.conv(branch, 128, 1)
    x = net.concat(Map(2 * y.rows, 2 * y.columns, y.channels), route)
    net.conv(net.conv(x, 256, 3), 3 * (classes + 5), 1)
    return net.steps


def hyperprior_analysis(residual: bool) -> list[Step]:
    """SAR_DDC's g_a: 5x5 /2 four times, N = 128; residual: blocks of two 5x5 after the first three.

    One channel of 256 x 256 comes in, 128 go out.
    """
    net, x = Net(), Map(256, 256, 1)
    for number in range(4):
        x = net.conv(x, 128, 5, 2)
        if residual and number < 3:
            x = net.add(net.conv(net.conv(x, 128, 5), 128, 5), x)
    return net.steps


def hyperprior_synthesis(residual: bool) -> list[Step]:
    """SAR_DDC's g_s: transposed 4x4 /2 four times; residual: blocks after the first three."""
    net, x = Net(), Map(16, 16, 128)
    for number in range(4):
        x = net.deconv(x, 128 if number < 3 else 1, 4, 2)
        if residual and number < 3:
            x = net.add(net.conv(net.conv(x, 128, 5), 128, 5), x)
    return net.steps


def hyper_analysis() -> list[Step]:
    """SAR_DDC's h_a: 5x5 /2 three times on 16 x 16 x 256."""
    net, x = Net(), Map(16, 16, 256)
    for _ in range(3):
        x = net.conv(x, 256, 5, 2)
    return net.steps


def hyper_synthesis() -> list[Step]:
    """SAR_DDC's h_s: transposed 4x4 /2 three times on 2 x 2 x 256."""
    net, x = Net(), Map(2, 2, 256)
    for _ in range(3):
        x = net.deconv(x, 256, 4, 2)
    return net.steps


# Subgraphs of dpu_lic_zcu102.csv, by its columns model and subgraph.
SUBGRAPHS: dict[tuple[str, str], Callable[[], list[Step]]] = {
    ("SHyp(N=128 relu)", "g_a"): lambda: hyperprior_analysis(False),
    ("SHyp(N=128 relu)", "g_s"): lambda: hyperprior_synthesis(False),
    ("SHyp/ResSHyp", "h_a"): hyper_analysis,
    ("SHyp/ResSHyp", "h_s"): hyper_synthesis,
    ("ResSHyp(N=128 relu)", "g_a"): lambda: hyperprior_analysis(True),
    ("ResSHyp(N=128 relu)", "g_s"): lambda: hyperprior_synthesis(True),
    ("ResFP(N=128 relu) 3 cores busy", "g_a"): lambda: hyperprior_analysis(True),
}
# Networks of dpu_perf.csv, by (release, zoo name).
NETWORKS: dict[tuple[str, str], Callable[[], list[Step]]] = {
    ("2.0", "cf_resnet18_imagenet_224_224_3.65G"): lambda: resnet((2, 2, 2, 2), "first3", True),
    ("3.0", "tf_resnetv1_50_imagenet_224_224_6.97G"): lambda: resnet((3, 4, 6, 3), "last3"),
    ("3.0", "tf2_resnet50_imagenet_224_224_7.76G"): lambda: resnet((3, 4, 6, 3), "first1"),
    ("3.0", "pt_resnet50_imagenet_224_224_8.2G"): lambda: resnet((3, 4, 6, 3), "first3"),
    ("3.0", "tf_resnetv1_101_imagenet_224_224_14.4G"): lambda: resnet((3, 4, 23, 3), "last3"),
    ("3.0", "tf_resnetv1_152_imagenet_224_224_21.83G"): lambda: resnet((3, 8, 36, 3), "last3"),
    ("3.0", "tf_vgg16_imagenet_224_224_30.96G"): lambda: vgg((2, 2, 3, 3, 3)),
    ("3.0", "tf_vgg19_imagenet_224_224_39.28G"): lambda: vgg((2, 2, 4, 4, 4)),
    ("3.0", "tf_inceptionv1_imagenet_224_224_3G"): inception_v1,
    ("3.0", "tf_inceptionv3_imagenet_299_299_11.45G"): inception_v3,
    ("3.0", "tf_mobilenetv1_0.25_imagenet_128_128_27M"): lambda: mobilenet_v1(128, 0.25),
    ("3.0", "tf_mobilenetv1_0.5_imagenet_160_160_150M"): lambda: mobilenet_v1(160, 0.5),
    ("3.0", "tf_mobilenetv1_1.0_imagenet_224_224_1.14G"): lambda: mobilenet_v1(224, 1.0),
    ("3.0", "tf_mobilenetv2_1.0_imagenet_224_224_602M"): lambda: mobilenet_v2(1.0),
    ("3.0", "tf_mobilenetv2_1.4_imagenet_224_224_1.16G"): lambda: mobilenet_v2(1.4),
    ("3.0", "pt_squeezenet_imagenet_224_224_703.5M"): squeezenet,
    ("3.0", "tf_yolov3_voc_416_416_65.63G"): yolo_v3,
    ("2.0", "dk_tiny-yolov3_416_416_5.46G"): tiny_yolo_v3,
}
