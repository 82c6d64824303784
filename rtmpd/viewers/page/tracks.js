// Removes one track of a fragmented MP4 whose fragments have one track each: one that the browser can't play, or that has
// stopped. A browser plays nothing where a track of the initialization segment has no media.

const BOX_LIMIT_BYTES = 64 << 20;
const HANDLERS = {video: "vide", audio: "soun"};

export class TrackFilter {
    // How many fragments of the track were removed.
    removed = 0;

    #handler;
    #held = new Uint8Array(0); // the beginning of a box
    #trackId = 0; // 0: there is no such track
    #drops = false; // the fragment belongs to the track

    // kind: "video" or "audio".
    constructor(kind) {
        this.#handler = HANDLERS[kind];
    }

    // Take bytes of the body; return those of whole boxes that stay. Throws a RangeError if they are no boxes.
    filter(bytes) {
        let data = joined([this.#held, bytes]);
        const kept = [];
        for (;;) {
            const size = boxSize(data);
            if (size === 0 || size > data.length) {
                break;
            }
            const box = this.#filterBox(data.subarray(0, size));
            if (box !== null) {
                kept.push(box);
            }
            data = data.subarray(size);
        }
        this.#held = data;
        return joined(kept);
    }

    #filterBox(box) {
        switch (typeOf(box)) {
        case "moov":
            return this.#filterMovie(box);
        case "moof": {
            const header = find(box, "traf", "tfhd");
            this.#drops = this.#trackId !== 0 && header !== null && number(header, 12) === this.#trackId;
            this.removed += this.#drops ? 1 : 0;
            break;
        }
        }
        return this.#drops && ["moof", "mdat"].includes(typeOf(box)) ? null : box;
    }

    #filterMovie(movie) {
        const boxes = children(movie);
        const track = boxes.find(box => typeOf(box) === "trak" && this.#handles(box));
        if (track === undefined) {
            this.#trackId = 0;
            return movie;
        }
        const header = find(track, "tkhd");
        this.#trackId = number(header, header[8] === 0 ? 20 : 28);
        const extends_ = box => typeOf(box) === "trex" && number(box, 12) === this.#trackId;
        return container("moov", boxes.filter(box => box !== track).map(box => {
            return typeOf(box) === "mvex" ? container("mvex", children(box).filter(each => !extends_(each))) : box;
        }));
    }

    #handles(track) {
        const handler = find(track, "mdia", "hdlr");
        return handler !== null && text(handler, 16) === this.#handler;
    }
}

function joined(parts) {
    if (parts.length === 1) {
        return parts[0];
    }
    const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
    let offset = 0;
    for (const part of parts) {
        whole.set(part, offset);
        offset += part.length;
    }
    return whole;
}

function number(data, offset) {
    return new DataView(data.buffer, data.byteOffset, data.byteLength).getUint32(offset);
}

function text(data, offset) {
    return String.fromCharCode(...data.subarray(offset, offset + 4));
}

function typeOf(box) {
    return text(box, 4);
}

// Return the size of the box at the beginning; 0: it is not known yet.
function boxSize(data) {
    if (data.length < 8) {
        return 0;
    }
    const size = number(data, 0);
    if (size < 8 || size > BOX_LIMIT_BYTES) {
        throw new RangeError(`a box of ${size} bytes`);
    }
    return size;
}

function children(box) {
    const found = [];
    for (let rest = box.subarray(8); rest.length > 0;) {
        const size = boxSize(rest);
        if (size === 0 || size > rest.length) {
            throw new RangeError("a box that is longer than the one around it");
        }
        found.push(rest.subarray(0, size));
        rest = rest.subarray(size);
    }
    return found;
}

// Return the first box with this path in a box; null: there is none.
function find(box, ...path) {
    for (const type of path) {
        box = children(box).find(each => typeOf(each) === type);
        if (box === undefined) {
            return null;
        }
    }
    return box;
}

function container(type, boxes) {
    const header = new Uint8Array(8);
    const size = boxes.reduce((sum, box) => sum + box.length, 8);
    new DataView(header.buffer).setUint32(0, size);
    header.set([...type].map(letter => letter.charCodeAt(0)), 4);
    return joined([header, ...boxes]);
}
