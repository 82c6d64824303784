// The codecs in MIME types such as video/mp4; codecs="avc1.64001f,mp4a.40.2": their names, their kinds, and what is left without.

import {isPlayable} from "./playback.js";

const NAMES = [
    [/^avc[13]/, "H.264"], [/^h(vc|ev)1/, "HEVC (H.265)"], [/^v(vc|vi)1/, "VVC (H.266)"], [/^av01/, "AV1"], [/^vp09/, "VP9"],
    [/^vp08/, "VP8"], [/^(\.?mp3|mp4a\.(6b|69|40\.34))/i, "MP3"], [/^mp4a/, "AAC"], [/^opus/i, "Opus"], [/^flac/i, "FLAC"],
    [/^ac-3/, "AC-3"], [/^ec-3/, "E-AC-3"],
];

const AUDIO = /^(mp4a|\.?mp3|opus|flac|ac-3|ec-3)/i;

// Return the codecs of a MIME type: [{name, id, kind}], such as H.264, avc1.64001f and video.
export function codecsOf(type) {
    const ids = /codecs="?([^"]*)"?/.exec(type)?.[1].split(",") ?? [];
    return ids.map(id => id.trim()).filter(Boolean).map(id => ({
        name: NAMES.find(([pattern]) => pattern.test(id))?.[1] ?? id, id, kind: AUDIO.test(id) ? "audio" : "video",
    }));
}

// Whether a MIME type has audio and video.
export function severalKinds(type) {
    return new Set(codecsOf(type).map(({kind}) => kind)).size > 1;
}

// Return the MIME type of what is left without audio or without video; empty: nothing is.
export function without(type, kind) {
    const left = codecsOf(type).filter(codec => codec.kind !== kind).map(({id}) => id);
    return kind && left.length > 0 && left.length < codecsOf(type).length ? `video/mp4; codecs="${left.join(",")}"` : "";
}

// Say which codecs of a MIME type the browser lacks.
export function missing(type) {
    const lacking = codecsOf(type).filter(({id}) => !isPlayable(`video/mp4; codecs="${id}"`));
    const names = (lacking.length > 0 ? lacking : codecsOf(type)).map(({name, id}) => `${name} (${id})`);
    return `This browser can't play ${names.join(" and ") || type}.`;
}
