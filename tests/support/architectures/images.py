"""Models of images and of places in space."""

import jax
import jax.numpy as jnp

from tests.support.architectures.parts import attend, encoder, heads, joined, mlp, patches


def vgg(k, x):
    """VGG (Simonyan and Zisserman, 2014)."""
    for width in (4, 6):
        x = jax.nn.relu(k.conv(x, width, (3, 3)))
        x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
    return k.dense(jax.nn.relu(k.dense(x.reshape(x.shape[0], -1), 8)), 3)


def resnet(k, x):
    """ResNet (He et al., 2015), a bottleneck that halves."""
    x = jax.nn.relu(k.batch_norm(k.conv(x, 4, (3, 3))))
    y = jax.nn.relu(k.batch_norm(k.conv(x, 2, (1, 1))))
    y = jax.nn.relu(k.batch_norm(k.conv(y, 2, (3, 3), strides=2)))
    y = k.batch_norm(k.conv(y, 8, (1, 1)))
    return k.dense(jax.nn.relu(y + k.batch_norm(k.conv(x, 8, (1, 1), strides=2))).mean((1, 2)), 3)


def mobilenet(k, x):
    """MobileNetV3 (Howard et al., 2019): an inverted bottleneck that squeezes and excites."""
    y = jax.nn.hard_swish(k.batch_norm(k.conv(x, 6, (1, 1))))
    y = jax.nn.hard_swish(k.batch_norm(k.conv(y, 6, (3, 3), groups=6)))
    y = y * jax.nn.hard_sigmoid(k.dense(jax.nn.relu(k.dense(y.mean((1, 2)), 3)), 6))[:, None, None]
    return k.dense((x + k.batch_norm(k.conv(y, 3, (1, 1)))).mean((1, 2)), 3)


def densenet(k, x):
    """DenseNet (Huang et al., 2016): each layer reads all before it."""
    for _ in range(2):
        x = jnp.concatenate([x, k.conv(jax.nn.relu(k.batch_norm(x)), 4, (3, 3))], -1)
    return k.dense(k.conv(x, 5, (1, 1)).mean((1, 2)), 3)


def convnext(k, x):
    """ConvNeXt (Liu et al., 2022)."""
    x = k.layer_norm(k.conv(x, 8, (2, 2), strides=2))
    x = x + mlp(k, k.layer_norm(k.conv(x, 8, (7, 7), groups=8)))
    return k.dense(k.layer_norm(x.mean((1, 2))), 3)


def mixer(k, x):
    """MLP-Mixer (Tolstikhin et al., 2021)."""
    x = patches(k, x, 8, 4)
    x = x + jnp.swapaxes(mlp(k, jnp.swapaxes(k.layer_norm(x), 1, 2)), 1, 2)
    return k.dense((x + mlp(k, k.layer_norm(x))).mean(1), 3)


def vit(k, x):
    """ViT (Dosovitskiy et al., 2020): a class token, positions for every patch."""
    x = patches(k, x, 8, 4)
    first = jnp.broadcast_to(k.weight(1, 1, 8), (x.shape[0], 1, 8))
    x = jnp.concatenate([first, x], 1)
    places, _ = k.embed(5, 8)
    return k.dense(k.layer_norm(encoder(k, x + places(jnp.arange(5))))[:, 0], 3)


def swin(k, x):
    """Swin (Liu et al., 2021): attention in shifted windows, biases from a table."""
    x = jnp.roll(k.conv(x, 8, (2, 2), strides=2), 1, (1, 2))
    b, h, w, d = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, d).swapaxes(2, 3).reshape(b, -1, 4, d)
    row, column = jnp.arange(4) // 2, jnp.arange(4) % 2
    apart = 3 * (row[:, None] - row + 1) + column[:, None] - column + 1
    bias = jnp.moveaxis(k.embed(9, 2)[0](apart), -1, 0)
    q, key, v = (heads(k.dense(x, 8), 2) for _ in range(3))
    x = x + k.dense(joined(attend(q, key, v, bias=bias)), 8)
    return k.dense(x.mean((1, 2)), 3)


def unet(k, x):
    """U-Net (Ronneberger et al., 2015), brought up by transposed convolutions."""
    side = jax.nn.relu(k.group_norm(k.conv(x, 4, (3, 3)), 2))
    x = jax.nn.relu(k.conv(side, 6, (3, 3), strides=2))
    x = k.conv_transpose(x, 4, (2, 2), strides=2)
    return k.conv(jax.nn.relu(k.conv(jnp.concatenate([side, x], -1), 4, (3, 3))), 2, (1, 1))


def diffusion_transformer(k, x, time):
    """DiT (Peebles and Xie, 2022): each block scaled and moved by what the time says."""
    waves = time[:, None] * 10.0 ** -jnp.arange(3)
    told = jax.nn.silu(k.dense(jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1), 8))
    x = patches(k, x, 8, 4)
    shift, scale, gate = jnp.split(k.dense(told, 24)[:, None], 3, -1)
    x = x + gate * mlp(k, k.layer_norm(x) * (1 + scale) + shift)
    q, key, v = (heads(k.dense(x, 8), 2) for _ in range(3))
    return k.dense(x + k.dense(joined(attend(q, key, v)), 8), 48)


def vq_autoencoder(k, x):
    """VQ-VAE (van den Oord et al., 2017): the nearest entries of a codebook between two halves."""
    x = k.conv(jax.nn.relu(k.conv(x, 6, (3, 3), strides=2)), 4, (1, 1))
    codes, scored = k.embed(3, 4)
    scores = scored(x)
    return scores, k.conv_transpose(codes(scores.argmax(-1)), 3, (2, 2), strides=2)


def field(k, places):
    """NeRF's network (Mildenhall et al., 2020): waves of a place, a skip past the middle."""
    waves = jnp.concatenate([f(places * 2.0**i) for i in range(2) for f in (jnp.sin, jnp.cos)], -1)
    x = jax.nn.relu(k.dense(waves, 8))
    return k.dense(jax.nn.relu(k.dense(jnp.concatenate([x, waves], -1), 8)), 4)


def point_net(k, points):
    """PointNet (Qi et al., 2016), a map of the points that the points choose among it."""
    seen = jax.nn.relu(k.dense(points, 8)).max(1)
    turned = points @ k.dense(seen, 9).reshape(-1, 3, 3)
    return k.dense(jax.nn.relu(k.dense(turned, 8)).max(1), 4)
