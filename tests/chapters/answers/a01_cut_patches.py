"""Answers to chapters/exercises/01_cut_patches.ipynb."""

ANSWERS = {
    "ex1": {
        "wrong": {
            "patches of 2 pixels, whatever is asked": """
                P = 2
                return images.reshape(B, C, H // P, P, W // P, P).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
            """,
            "reshape alone": "return images.reshape(B, (H // P) * (W // P), C * P * P)",
            "down the columns": """
                x = images.reshape(B, C, H // P, P, W // P, P).permute(0, 4, 2, 1, 3, 5)
                return x.flatten(3).flatten(1, 2)
            """,
            "channels last in a patch": """
                x = images.reshape(B, C, H // P, P, W // P, P).permute(0, 2, 4, 3, 5, 1)
                return x.flatten(3).flatten(1, 2)
            """,
            "h and w exchanged": """
                x = images.reshape(B, C, W // P, P, H // P, P).permute(0, 2, 4, 1, 3, 5)
                return x.flatten(3).flatten(1, 2)
            """,
        },
        "right": {
            "unfold": "return torch.nn.functional.unfold(images, P, stride=P).transpose(1, 2)",
            "two unfolds": """
                squares = images.unfold(2, P, P).unfold(3, P, P)
                return squares.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            """,
        },
    },
    "ex2": {
        "wrong": {
            "right bound compared with h": """
                r, c = divmod(n, w)
                return [m for m, ok in ((n - w, r > 0), (n - 1, c > 0), (n + 1, c + 1 < h), (n + w, r + 1 < h)) if ok]
            """,
            "off by one at the right: last column but one has no right neighbour": """
                r, c = divmod(n, w)
                return [m for m, ok in ((n - w, r > 0), (n - 1, c > 0), (n + 1, c < w - 2), (n + w, r + 1 < h)) if ok]
            """,
            "off by one at the left: column 1 has no left neighbour": """
                r, c = divmod(n, w)
                return [m for m, ok in ((n - w, r > 0), (n - 1, c > 1), (n + 1, c + 1 < w), (n + w, r + 1 < h)) if ok]
            """,
            "w hard-wired to 7, h to 4": """
                h, w = 4, 7
                r, c = divmod(n, w)
                return [m for m, ok in ((n - w, r > 0), (n - 1, c > 0), (n + 1, c + 1 < w), (n + w, r + 1 < h)) if ok]
            """,
            "not in order": """
                row, column = divmod(n, w)
                around = [(row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column)]
                return [i * w + j for i, j in around if 0 <= i < h and 0 <= j < w]
            """,
            "wraps round at the ends of rows": "return [m for m in (n - w, n - 1, n + 1, n + w) if 0 <= m < h * w]",
            "rows of h patches": """
                row, column = divmod(n, h)
                around = [(row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column)]
                return [i * h + j for i, j in around if 0 <= i < w and 0 <= j < h]
            """,
            "corners too": """
                row, column = divmod(n, w)
                around = [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
                return [i * w + j for i, j in around if 0 <= i < h and 0 <= j < w]
            """,
            "no borders": "return [n - w, n - 1, n + 1, n + w]",
        },
        "right": {
            "by distance": """
                near = [m for m in range(h * w) if abs(m // w - n // w) + abs(m % w - n % w) == 1]
                return near
            """
        },
    },
    "ex3": {
        "wrong": {
            "row first": 'return {"right": "second", "down": "first", "different first halves": 3}',
            "every code counted": 'return {"right": "first", "down": "second", "different first halves": 15}',
            "rows counted": 'return {"right": "first", "down": "second", "different first halves": 3}',
        },
    },
    "ex4": {
        "wrong": {
            "three channels of 2 pixels, whatever is asked": """
                h, w = grid
                x = tokens.reshape(len(tokens), h, w, 3, 2, 2)
                return x.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), 3, h * 2, w * 2)
            """,
            "as it was": """
                B, N, L = tokens.shape
                h, w = grid
                P = round((L / channels) ** 0.5)
                x = tokens.reshape(B, h, w, channels, P, P)
                x = x.permute(0, 3, 1, 2, 4, 5)
                return x.reshape(B, channels, h * P, w * P)
            """,
            "patches on their side": """
                B, N, L = tokens.shape
                h, w = grid
                P = round((L / channels) ** 0.5)
                x = tokens.reshape(B, h, w, channels, P, P)
                x = x.permute(0, 3, 1, 5, 2, 4)
                return x.reshape(B, channels, h * P, w * P)
            """,
            "square images only": """
                B, N, L = tokens.shape
                h = w = round(N**0.5)
                P = round((L / channels) ** 0.5)
                x = tokens.reshape(B, h, w, channels, P, P)
                x = x.permute(0, 3, 1, 4, 2, 5)
                return x.reshape(B, channels, h * P, w * P)
            """,
            "grid exchanged": """
                B, N, L = tokens.shape
                h, w = grid
                P = round((L / channels) ** 0.5)
                x = tokens.reshape(B, h, w, channels, P, P)
                x = x.permute(0, 3, 2, 4, 1, 5)
                return x.reshape(B, channels, h * P, w * P)
            """,
        },
        "right": {
            "fold": """
                P = round((tokens.shape[2] / channels) ** 0.5)
                size = (grid[0] * P, grid[1] * P)
                return torch.nn.functional.fold(tokens.transpose(1, 2), size, P, stride=P)
            """
        },
    },
}
