#!/usr/bin/env python3
"""Writes golden/conv.json: convolution, pooling, batch norm and LSTM of PyTorch, values and gradients of half the
squared distance of the output to targets, in double precision from values that are exact in f32. Run it with a Python
that has torch."""
import json
import pathlib

import torch

torch.manual_seed(1)


def tensor(*shape):
    return (torch.randn(*shape) * 64).round().div(64).double().requires_grad_()


def flat(value):
    return [float(f"{v:.12g}") for v in value.detach().reshape(-1).tolist()]


def record(name, kind, x, y, learns, **more):
    targets = tensor(*y.shape).detach()
    (0.5 * ((y - targets) ** 2).sum()).backward()
    case = {"name": name, "kind": kind, "images": x.shape[0], **more, "x": flat(x), "y": flat(y),
            "targets": flat(targets), "d_x": flat(x.grad)}
    for key, value in learns.items():
        case[key] = flat(value)
        case["d_" + key] = flat(value.grad)
    return case


def filter_keys(kernel, stride=(1, 1), pad=(0, 0), dilation=(1, 1), groups=1):
    """All pairs are (y, x), as PyTorch has them."""
    return {"kernel_y": kernel[0], "kernel_x": kernel[1], "stride_y": stride[0], "stride_x": stride[1],
            "pad_y": pad[0], "pad_x": pad[1], "dilation_y": dilation[0], "dilation_x": dilation[1], "groups": groups}


def image_keys(x):
    return {"c": x.shape[1], "h": x.shape[2], "w": x.shape[3]}


def conv(name, images, c, h, w, outputs, kernel, **how):
    keys = filter_keys(kernel, **how)
    x, weight, bias = tensor(images, c, h, w), tensor(outputs, c // keys["groups"], *kernel), tensor(outputs)
    y = torch.nn.functional.conv2d(x, weight, bias, how.get("stride", (1, 1)), how.get("pad", (0, 0)),
                                   how.get("dilation", (1, 1)), keys["groups"])
    return record(name, "conv", x, y, {"weight": weight, "bias": bias}, outputs=outputs, **image_keys(x), **keys)


def pool(name, kind, images, c, h, w, kernel, stride, pad):
    x = tensor(images, c, h, w)
    if kind == "max_pool":
        y = torch.nn.functional.max_pool2d(x, kernel, stride, pad)
    else:
        y = torch.nn.functional.avg_pool2d(x, kernel, stride, pad, count_include_pad=False)
    return record(name, kind, x, y, {}, **image_keys(x), **filter_keys(kernel, stride, pad))


def batch_norm(name, images, c, h, w, training):
    x, gain, bias = tensor(images, c, h, w), tensor(c), tensor(c)
    mean, variance = tensor(c).detach(), tensor(c).detach().abs() + 0.5
    before = {"mean": flat(mean), "variance": flat(variance)}
    y = torch.nn.functional.batch_norm(x, mean, variance, gain, bias, training, 0.125, 2.0**-10)
    return record(name, "batch_norm", x, y, {"gain": gain, "bias": bias}, **image_keys(x), **before, eps=2.0**-10,
                  momentum=0.125, training=int(training), mean_after=flat(mean), variance_after=flat(variance))


def lstm(name, images, steps, inputs, hidden, reverse):
    """One direction; `reverse` as the second half of a bidirectional one."""
    x = tensor(images, steps, inputs)
    net = torch.nn.LSTM(inputs, hidden, batch_first=True).double()
    weight_ih, weight_hh, bias = tensor(4 * hidden, inputs), tensor(4 * hidden, hidden), tensor(4 * hidden)
    state = torch.func.functional_call(net, {"weight_ih_l0": weight_ih, "weight_hh_l0": weight_hh, "bias_ih_l0": bias,
                                             "bias_hh_l0": torch.zeros(4 * hidden, dtype=torch.double)},
                                       (x.flip(1) if reverse else x,))[0]
    y = state.flip(1) if reverse else state
    return record(name, "lstm", x, y, {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias": bias}, c=inputs,
                  w=steps, h=1, hidden=hidden, reverse=int(reverse))


cases = [
    conv("waveform", 2, 3, 1, 17, 4, (1, 5), pad=(0, 2)),
    conv("waveform, stride", 2, 2, 1, 30, 3, (1, 7), stride=(1, 4), pad=(0, 3)),
    conv("image", 2, 3, 6, 7, 4, (3, 3), pad=(1, 1)),
    conv("stride and dilation", 1, 2, 9, 11, 3, (2, 3), stride=(2, 3), pad=(1, 2), dilation=(3, 2)),
    conv("groups", 2, 4, 5, 6, 6, (3, 2), groups=2),
    conv("depth-wise", 1, 5, 6, 6, 5, (3, 3), pad=(1, 1), groups=5),
    pool("max", "max_pool", 2, 2, 7, 9, (2, 3), (2, 2), (1, 1)),
    pool("average", "average_pool", 2, 2, 7, 9, (2, 3), (2, 2), (1, 1)),
    batch_norm("training", 3, 4, 3, 5, True),
    batch_norm("running", 3, 4, 3, 5, False),
    lstm("lstm", 3, 6, 4, 5, False),
    lstm("lstm, reverse", 2, 7, 3, 4, True),
]
path = pathlib.Path(__file__).parent / "golden/conv.json"
text = json.dumps({"written_by": "tests/graph/conv_golden.py", "torch": torch.__version__, "cases": cases})
path.write_text(text.replace('}, {"name"', '},\n{"name"') + "\n")
print(path, len(text))
