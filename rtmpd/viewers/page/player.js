// The player page: buttons, keys, messages and figures around a Session.

import {codecsOf} from "./codecs.js";
import {mark, Session} from "./session.js";

const IDLE_MS = 3000; // Controls disappear after this long without pointer and keys.
const FIGURES_MS = 500;
const CLICK_MS = 220; // A second click within this time is a double click.
const BEHIND_S = 1.5; // Media that lies this much further behind than it should is no longer called live.
const INFO_MS = 15_000; // How often the page asks which renditions there are.

const [
    stage, video, still, message, headline, detail, again, big, unmute, info, bar, play, mute, volume, live, latency, renditions, details,
    pip, full, status,
] = [
    "stage", "video", "still", "message", "headline", "detail", "again", "big", "unmute", "info", "bar", "play", "mute", "volume", "live",
    "latency", "renditions", "details", "pip", "full", "status",
].map(id => document.getElementById(id));

const TITLE = document.title;

// What the page says in each state: a headline, and the text below it. Empty: the picture says it.
const MESSAGES = {
    connecting: () => ["", ""],
    playing: () => session.type && !codecOf("video") ? ["Sound only", session.loss || "The stream has no picture."] : ["", ""],
    stopped: () => ["", ""],
    waiting: () => ["Not live right now", "The stream starts here by itself as soon as it is published."],
    interrupted: () => ["The stream is interrupted", "It continues by itself as soon as its publisher sends again."],
    unreachable: untilMs => ["The server can't be reached", tryAgainText(untilMs)],
    refused: reason => ["You may not watch this stream", reason || "The token in the address is missing, wrong or no longer valid."],
    busy: reason => ["The server is busy", `${reason} The page tries again by itself.`],
    unplayable: reason => ["The stream can't be played here", reason],
    broken: reason => ["Playback has failed", `${reason}. The page tries again by itself.`],
};
const WITH_BUTTON = ["refused", "unreachable", "busy", "unplayable", "broken"];
const ANNOUNCED = {connecting: "Connecting", playing: "Playing", stopped: "Paused"};

// The stream ------------------------------------------------------------------------------------------------------------

// The rendition that the viewer has chosen: the last part of its path; empty: the stream of the page.
let chosen = "";
const ownName = decodeURIComponent(location.pathname.replace(/^.*\//, ""));

function urlOf(ending, parameters = {}) {
    const url = new URL(location.href);
    url.hash = "";
    const path = chosen && ending !== "/info.json" ? url.pathname.replace(/[^/]*$/, encodeURIComponent(chosen)) : url.pathname;
    url.pathname = path + ending;
    for (const [name, value] of Object.entries(parameters)) {
        url.searchParams.set(name, value);
    }
    return url.href;
}

const session = new Session(video, {
    media: () => urlOf(".mp4", {wait: 1}),
    hls: () => urlOf("/index.m3u8"),
    info: () => urlOf("/info.json"),
}, {
    state: showState,
    hold: holdPicture,
    picture: showPicture,
    stalled: value => stage.toggleAttribute("data-stalled", value),
    muted: showSound,
    blocked: () => {
        big.hidden = false;
    },
});

let shown = "connecting";
let shownDetail = "";

function showState(name, about) {
    const changed = name !== shown;
    shown = name;
    shownDetail = about;
    stage.dataset.state = name;
    if (name !== "playing") {
        stage.removeAttribute("data-stalled");
    }
    showMessage();
    big.hidden = name !== "stopped";
    const stopped = name === "stopped";
    setButton(play, stopped ? "play" : "pause", stopped ? "Play" : "Pause", "k");
    document.title = name === "playing" ? `● ${TITLE}` : TITLE;
    if ("mediaSession" in navigator) {
        navigator.mediaSession.playbackState = stopped ? "paused" : "playing";
    }
    if (changed && (name === "playing" || (name === "waiting" && chosen))) {
        showRenditions();
    }
    if (changed) {
        const said = name === "playing" && session.loss ? `Playing. ${session.loss}` : ANNOUNCED[name];
        status.textContent = said ?? [headline.textContent, name === "unreachable" ? "" : detail.textContent].join(". ");
    }
    showSound();
    wake();
}

function showMessage() {
    const [title, text] = MESSAGES[shown](shownDetail);
    message.hidden = !title;
    headline.textContent = title;
    detail.textContent = text;
    again.hidden = !WITH_BUTTON.includes(shown);
}

function tryAgainText(untilMs) {
    const leftS = Math.ceil((untilMs - Date.now()) / 1000);
    return leftS > 0 ? `Trying again in ${leftS} s.` : "Trying again.";
}

// Keep the last picture while the element has another source.
function holdPicture() {
    if (video.videoWidth > 0 && video.readyState >= 2) {
        still.width = video.videoWidth;
        still.height = video.videoHeight;
        still.getContext("2d").drawImage(video, 0, 0);
        still.hidden = false;
    }
}

function showPicture() {
    stage.toggleAttribute("data-picture", video.videoWidth > 0);
    still.hidden = true;
    mark("picture");
}

// Controls --------------------------------------------------------------------------------------------------------------

function setButton(button, icon, label, key) {
    button.querySelector("use").setAttribute("href", `#icon-${icon}`);
    button.setAttribute("aria-label", label);
    button.title = `${label} (${key})`;
}

function togglePlay() {
    if (session.state === "stopped") {
        big.hidden = true;
        session.start();
    } else if (!big.hidden) {
        // The browser waited for a click.
        big.hidden = true;
        session.playback?.play();
    } else {
        session.stop();
    }
}

function toggleMute() {
    video.muted = !video.muted;
    if (!video.muted && video.volume === 0) {
        video.volume = 0.5;
    }
    if (!video.muted && video.paused) {
        session.playback?.play();
    }
}

function changeVolume(by) {
    video.volume = Math.min(1, Math.max(0, video.volume + by));
    video.muted = video.volume === 0;
}

function showSound() {
    const silent = video.muted || video.volume === 0;
    setButton(mute, silent ? "muted" : "loud", silent ? "Unmute" : "Mute", "m");
    volume.value = silent ? 0 : video.volume;
    const hasSound = codecsOf(session.type).length === 0 || codecOf("audio") !== undefined;
    unmute.hidden = !(video.muted && hasSound && shown === "playing" && !heard);
    heard ||= !silent;
    mute.disabled = !hasSound;
    if (!hasSound) {
        mute.title = session.loss || "The stream has no sound";
    }
}

let heard = false; // The viewer has switched the sound on once, and knows the way.

async function toggleFull() {
    try {
        if (document.fullscreenElement) {
            await document.exitFullscreen();
        } else if (stage.requestFullscreen) {
            await stage.requestFullscreen();
        } else {
            // iPhones show only the element itself.
            video.webkitEnterFullscreen?.();
        }
    } catch (error) {
        console.warn(`full screen: ${error.message}`);
    }
}

async function togglePip() {
    try {
        if (document.pictureInPictureElement) {
            await document.exitPictureInPicture();
        } else {
            await video.requestPictureInPicture();
        }
    } catch (error) {
        console.warn(`picture in picture: ${error.message}`);
    }
}

function toggleDetails() {
    info.hidden = !info.hidden;
    details.setAttribute("aria-expanded", String(!info.hidden));
    showFigures();
    wake();
}

full.hidden = !(document.fullscreenEnabled || video.webkitSupportsFullscreen);
pip.hidden = !document.pictureInPictureEnabled;
play.addEventListener("click", togglePlay);
big.addEventListener("click", togglePlay);
mute.addEventListener("click", toggleMute);
unmute.addEventListener("click", event => {
    toggleMute();
    if (event.detail === 0) {
        // It was a key: the button that disappears leaves the focus to its neighbour.
        mute.focus();
    }
});
full.addEventListener("click", toggleFull);
pip.addEventListener("click", togglePip);
details.addEventListener("click", toggleDetails);
live.addEventListener("click", () => session.state === "stopped" ? session.start() : session.goLive());
again.addEventListener("click", () => session.restart());
volume.addEventListener("input", () => {
    video.volume = Number(volume.value);
    video.muted = video.volume === 0;
});
video.addEventListener("volumechange", showSound);
document.addEventListener("fullscreenchange", () => {
    const on = document.fullscreenElement !== null;
    setButton(full, on ? "window" : "full", on ? "Leave full screen" : "Full screen", "f");
});

// A pause that the page has not asked for comes from media keys, from a picture in picture, or from the system.
video.addEventListener("pause", () => {
    if (session.playback?.started && !document.hidden && !video.ended && !video.error) {
        session.stop();
    }
});
document.addEventListener("visibilitychange", () => {
    if (!document.hidden && video.paused && session.playback?.started) {
        session.playback.play();
    }
});

// The browser may keep a page that the viewer has left, with its connections, and show it again.
let left = false;
addEventListener("pagehide", () => {
    left = session.state !== "stopped";
    if (left) {
        session.stop();
    }
});
addEventListener("pageshow", () => {
    if (left) {
        left = false;
        session.start();
    }
});

const KEYS = {
    " ": togglePlay,
    k: togglePlay,
    m: toggleMute,
    f: toggleFull,
    i: toggleDetails,
    p: togglePip,
    ArrowUp: () => changeVolume(0.1),
    ArrowDown: () => changeVolume(-0.1),
    Escape: () => info.hidden || toggleDetails(),
};

document.addEventListener("keydown", event => {
    wake();
    const target = event.target.closest("button, select, input");
    const own = target?.matches("select, input") || (target && event.key === " ");
    const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (action === undefined || own || event.ctrlKey || event.altKey || event.metaKey || (event.repeat && !event.key.startsWith("Arrow"))) {
        return;
    }
    event.preventDefault();
    action();
});

// A click pauses, a double click fills the screen; a tap shows the controls or hides them.
let clicked = 0;
video.addEventListener("pointerup", event => {
    if (event.pointerType !== "mouse") {
        stage.hasAttribute("data-idle") ? wake() : rest();
    } else if (event.button === 0) {
        clearTimeout(clicked);
        clicked = event.detail > 1 ? 0 : setTimeout(togglePlay, CLICK_MS);
    }
});
video.addEventListener("dblclick", () => {
    clearTimeout(clicked);
    toggleFull();
});

let idle = 0;

function wake() {
    stage.removeAttribute("data-idle");
    clearTimeout(idle);
    idle = setTimeout(rest, IDLE_MS);
}

function rest() {
    const focused = document.activeElement;
    const used = (bar.contains(focused) && focused.matches(":focus-visible")) || bar.matches(":hover") || !info.hidden;
    stage.toggleAttribute("data-idle", shown === "playing" && !used);
}

for (const name of ["pointermove", "pointerdown", "focusin"]) {
    stage.addEventListener(name, event => {
        if (!(name === "pointerdown" && event.pointerType === "touch")) {
            wake();
        }
    });
}

if ("mediaSession" in navigator) {
    navigator.mediaSession.metadata = new MediaMetadata({title: TITLE});
    navigator.mediaSession.setActionHandler("play", () => session.start());
    navigator.mediaSession.setActionHandler("pause", () => session.stop());
    navigator.mediaSession.setActionHandler("stop", () => session.stop());
}

// Figures ---------------------------------------------------------------------------------------------------------------

function codecOf(kind) {
    return codecsOf(session.type).find(codec => codec.kind === kind);
}

let framesBefore = {atMs: 0, count: 0};
let frameRate = 0;

function showFigures() {
    const playback = session.playback;
    const playing = shown === "playing" && playback?.started;
    const latencyS = playing ? playback.latencyS : NaN;
    latency.textContent = playing ? `${latencyS.toFixed(1)} s` : "";
    stage.toggleAttribute("data-behind", playing && latencyS > playback.cushionS + BEHIND_S);
    if (shown === "unreachable") {
        showMessage();
    }
    const quality = video.getVideoPlaybackQuality?.();
    const nowMs = performance.now();
    if (quality && nowMs - framesBefore.atMs > 1000) {
        frameRate = Math.max(0, (quality.totalVideoFrames - framesBefore.count) * 1000 / (nowMs - framesBefore.atMs));
        framesBefore = {atMs: nowMs, count: quality.totalVideoFrames};
    }
    if (info.hidden) {
        return;
    }
    const [picture, sound] = [codecOf("video"), codecOf("audio")];
    const size = video.videoWidth ? `${video.videoWidth} x ${video.videoHeight}` : "";
    const texts = {
        latency: playing ? `${latencyS.toFixed(2)} s behind the server` : "–",
        buffer: playing ? `${playback.aheadS.toFixed(2)} s, at speed ${video.playbackRate.toFixed(2)}` : "–",
        video: [picture && `${picture.name} (${picture.id})`, size, frameRate >= 1 ? `${Math.round(frameRate)} fps` : ""].filter(Boolean).join(", "),
        audio: sound ? `${sound.name} (${sound.id})` : session.loss || "none",
        rate: session.bitrate ? `${(session.bitrate / 1e6).toFixed(2)} Mbit/s` : "–",
        frames: quality ? `${quality.totalVideoFrames} shown, ${quality.droppedVideoFrames} dropped` : "–",
        stalls: `${session.stalls + (playback?.stalls ?? 0)}, ${session.jumps + (playback?.jumps ?? 0)} jumps`,
    };
    for (const [name, text] of Object.entries(texts)) {
        document.getElementById(`info-${name}`).textContent = text || "–";
    }
}

setInterval(showFigures, FIGURES_MS);

// Renditions ------------------------------------------------------------------------------------------------------------

// Offer the streams that show the same in another quality.
async function showRenditions() {
    if (document.hidden || session.state === "stopped" || session.state === "refused") {
        return;
    }
    const info = await session.info();
    if (!Array.isArray(info?.renditions)) {
        return;
    }
    const names = info.renditions.map(({name}) => name);
    const offered = [...renditions.options].map(({value}) => value);
    if (names.join("/") !== offered.join("/")) {
        renditions.replaceChildren(...info.renditions.map(each => new Option(describe(each, info.renditions), each.name)));
        renditions.hidden = names.length < 2;
    }
    if (chosen && !names.includes(chosen)) {
        // It is no longer published.
        choose("");
    }
    renditions.value = chosen || ownName;
}

function describe({name, height, frame_rate: fps, bit_rate: bits}, others) {
    const size = height ? `${height}p${fps > 31 ? fps : ""}` : name;
    const alone = others.filter(other => other.height === height).length < 2;
    return alone ? size : `${size}, ${(bits / 1e6).toFixed(1)} Mbit/s`;
}

function choose(name) {
    chosen = name === ownName ? "" : name;
    session.restart();
}

renditions.addEventListener("change", () => choose(renditions.value));
setInterval(showRenditions, INFO_MS);

// Start -----------------------------------------------------------------------------------------------------------------

video.muted = true;
showSound();
wake();
session.start();
