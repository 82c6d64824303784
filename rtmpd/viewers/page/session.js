// Keeps a stream playing: asks the server for it, waits for its publisher, and asks again after each end and failure.

import {missing, severalKinds, without} from "./codecs.js";
import {Latency} from "./latency.js";
import {isPlayable, Playback} from "./playback.js";
import {TrackFilter} from "./tracks.js";

const WAITING_MS = 600; // The server holds its answer back while nothing is published: after this long the page says so.
const ANSWER_MS = 30_000; // The server holds it back for at most 20 s.
const POLL_MS = 2000; // How often to ask where the server does not hold its answer back.
const FIRST_RETRY_MS = 400;
const RETRY_FACTOR = 1.6;
const LAST_RETRY_MS = 6_000;
const REFUSED_RETRY_MS = 30_000; // The answer would hardly be another one: codecs, limits.
const BROKEN_RETRY_MS = 5_000;
const BROKEN_LIMIT = 3; // So many failures of the browser to play, in
const BROKEN_MS = 60_000; // this time, are shown.
const SILENT_MS = 4_000; // No byte for this long: ask whether the server is there and the stream goes on.
const SUSPECT_MS = 1_000; // Likewise, after the computer has slept, or the network has changed.
const DEAD_MS = 15_000; // The connection may be dead though the server has the stream. Longer than the grace of a lost
const DEAD_SUSPECT_MS = 3_000; // publisher by default; likewise.
const BARREN_MS = 5_000; // Bytes come and can't be played for this long: one of the tracks has no media.
const RETURNED = 50; // So many fragments of a track that was left out: it has media again.
const RATE_MS = 2_000; // The time over which the bit rate is a mean.
const SHORT_MS = 1000; // A body that lasted no longer is a failure of its own.
const SLEPT_MS = 4_000; // A timer that is so much late has slept.
const TICK_MS = 500;

const idle = () => {};

// States, with the detail that the page shows:
//   connecting; waiting: not published; playing; interrupted: published, but nothing comes
//   unreachable: no answer, detail is the time of the next try; refused: 401 or 403, detail is the reason
//   busy: a limit is reached; unplayable: the browser lacks a codec, or MP4 does; broken: the browser fails to play; stopped
export class Session {
    playback = null;
    // The MIME type of what is played.
    type = "";
    // Why a track is left out; empty: none is.
    loss = "";
    // Bits per second that come, lately.
    bitrate = 0;
    stalls = 0;
    jumps = 0;

    #video;
    #urls;
    #events;
    #native;
    #latency = new Latency();
    #stop = null; // an AbortController; null: stopped
    #wakeUp = () => {};
    #state = "stopped";
    #heardMs = 0; // performance.now() when the last bytes came
    #begunMs = 0; // likewise, when the body began
    #tickedMs = 0;
    #suspectMs = -Infinity;
    #asking = false;
    #failures = 0;
    #broken = [];
    #absent = ""; // the kind of the track that has no media, as it seems: "audio" or "video"
    #filter = null; // removes a track; null: none
    #counted = null; // {ms, bytes}: since when bytes are counted, and how many
    #giveUp = idle; // ends the body that is read; takes whether the server answers
    #askAgain = false; // the body was given up, and the server answers

    // urls: {media(), hls(), info()} return URLs. events: state(name, detail), hold(), and those of Playback.
    constructor(video, urls, events) {
        this.#video = video;
        this.#urls = urls;
        this.#events = events;
        this.#native = globalThis.MediaSource === undefined && globalThis.ManagedMediaSource === undefined;
        addEventListener("online", () => this.#suspect());
        document.addEventListener("visibilitychange", () => document.hidden || this.#suspect());
    }

    // The name of the state.
    get state() {
        return this.#state;
    }

    // Play, and continue until `stop`.
    start() {
        if (this.#stop !== null) {
            return;
        }
        this.#stop = new AbortController();
        this.#failures = 0;
        this.#run(this.#stop.signal).catch(error => {
            console.error(error);
            this.stop();
            this.#show("broken");
        });
    }

    // Stop: nothing is fetched any longer.
    stop() {
        this.#stop?.abort();
        this.#stop = null;
        this.#wakeUp();
        this.#close();
        this.#video.pause();
        this.#show("stopped");
    }

    // Ask anew, as for another rendition.
    restart() {
        if (this.#stop !== null) {
            this.#stop.abort();
            this.#stop = null;
            this.#wakeUp();
            this.start();
        }
    }

    // Go to the newest media.
    goLive() {
        if (this.playback !== null) {
            this.playback.jump();
        } else {
            this.#wakeUp();
        }
    }

    // Asking ------------------------------------------------------------------------------------------------------------

    async #run(signal) {
        this.#tickedMs = Date.now();
        const ticker = setInterval(() => this.#tick(), TICK_MS);
        this.#show("connecting");
        try {
            while (!signal.aborted) {
                const pauseMs = await (this.#native ? this.#playNatively(signal) : this.#playOnce(signal));
                if (pauseMs > 0 && !signal.aborted) {
                    await this.#sleep(pauseMs);
                }
            }
        } finally {
            clearInterval(ticker);
        }
    }

    // Ask for the stream once, and play it to its end. Return how long to wait before asking again, ms.
    async #playOnce(outer) {
        // Aborted with the session, or when the connection is given up.
        const ask = new AbortController();
        const giveUp = () => ask.abort();
        outer.addEventListener("abort", giveUp, {once: true});
        const begun = performance.now();
        const waiting = setTimeout(() => this.#askWhy(ask), WAITING_MS);
        const late = setTimeout(giveUp, ANSWER_MS);
        try {
            let response;
            mark("asked");
            try {
                response = await fetch(this.#urls.media(), {
                    signal: ask.signal, cache: "no-store", headers: {Accept: "video/mp4, application/json;q=0.9"},
                });
            } finally {
                clearTimeout(waiting);
                clearTimeout(late);
            }
            if (response.ok) {
                return await this.#playBody(response, ask);
            }
            const reason = await reasonOf(response);
            return outer.aborted ? 0 : this.#refused(response, reason, performance.now() - begun);
        } catch (error) {
            if (outer.aborted) {
                return 0;
            }
            if (error.name !== "AbortError" && !(error instanceof TypeError)) {
                throw error;
            }
            if (this.#askAgain) {
                this.#askAgain = false;
                this.#show("connecting");
                return 0;
            }
            return this.#unreachable();
        } finally {
            outer.removeEventListener("abort", giveUp);
            ask.abort();
        }
    }

    // The answer does not come: either nothing is published, or the server does not answer at all.
    async #askWhy(ask) {
        const info = await this.info();
        if (!ask.signal.aborted && this.#giveUp === idle) {
            if (info !== null) {
                this.#show("waiting");
            } else {
                ask.abort();
            }
        }
    }

    // Ask the server about the stream. Return what it says; an empty object if it refuses; null if it does not answer.
    async info() {
        const ask = new AbortController();
        const late = setTimeout(() => ask.abort(), SILENT_MS);
        try {
            const response = await fetch(this.#urls.info(), {cache: "no-store", signal: ask.signal});
            const text = await response.text();
            return response.ok ? JSON.parse(text) : {};
        } catch (error) {
            return error instanceof SyntaxError ? {} : null;
        } finally {
            clearTimeout(late);
        }
    }

    #refused(response, reason, tookMs) {
        switch (response.status) {
        case 404:
            this.#failures = 0;
            this.#show("waiting");
            // The server has waited already, unless it is configured otherwise.
            return tookMs > POLL_MS ? 0 : POLL_MS;
        case 401:
        case 403:
            this.#show("refused", reason);
            return Infinity;
        case 415:
            this.#show("unplayable", reason);
            return REFUSED_RETRY_MS;
        case 429:
        case 503:
            this.#show("busy", reason);
            return Math.max(1000 * (Number(response.headers.get("Retry-After")) || 0), this.#backOffMs());
        default:
            return this.#unreachable();
        }
    }

    #unreachable() {
        const waitMs = this.#backOffMs();
        this.#show("unreachable", Date.now() + waitMs);
        return waitMs;
    }

    #backOffMs() {
        const limitMs = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * RETRY_FACTOR ** this.#failures);
        this.#failures += 1;
        // Not all viewers of a server that restarts come at the same moment.
        return limitMs * (0.5 + Math.random() / 2);
    }

    #sleep(ms) {
        return new Promise(resolve => {
            const timer = ms === Infinity ? 0 : setTimeout(resolve, ms);
            this.#wakeUp = () => {
                clearTimeout(timer);
                resolve();
            };
        });
    }

    // Ask at once if the page waits, and soon whether a connection that seems to be there still is.
    #suspect() {
        this.#suspectMs = performance.now();
        if (this.#state === "unreachable") {
            this.#failures = 0;
            this.#wakeUp();
        }
    }

    // Playing -----------------------------------------------------------------------------------------------------------

    async #playBody(response, ask) {
        this.#close();
        if (!this.#choose(response.headers.get("Content-Type") ?? "")) {
            this.#show("unplayable", this.loss);
            return REFUSED_RETRY_MS;
        }
        this.#events.hold();
        let failed = false;
        const playback = this.playback = new Playback(this.#video, this.type, {
            ...this.#events,
            started: () => {
                this.#failures = 0;
                this.#show("playing");
            },
            failed: () => {
                failed = true;
                ask.abort();
            },
        }, this.#latency);
        const begunMs = this.#begunMs = this.#heardMs = performance.now();
        const giveUp = this.#giveUp = answers => {
            this.#askAgain = answers;
            ask.abort();
        };
        const reader = response.body.getReader();
        try {
            for (let read = await reader.read(); !read.done; read = await reader.read()) {
                this.#count(read.value.byteLength);
                const bytes = this.#filter === null ? read.value : this.#filter.filter(read.value);
                if (bytes.byteLength > 0) {
                    playback.append(bytes);
                }
            }
            this.#absent = "";
            playback.finish();
            // The stream has ended, or continues with other codecs.
            this.#show("connecting");
            return performance.now() - begunMs < SHORT_MS ? this.#backOffMs() : 0;
        } catch (error) {
            if (!failed && !(error instanceof RangeError)) {
                throw error;
            }
            ask.abort();
            return this.#failedToPlay(playback.problem);
        } finally {
            if (this.#giveUp === giveUp) {
                this.#giveUp = idle;
            }
            this.bitrate = 0;
            this.#counted = null;
        }
    }

    // Choose the tracks to play, and set `type` and `loss`. Return whether there are any.
    #choose(offered) {
        const left = [this.#absent, "audio", "video"].find(kind => isPlayable(without(offered, kind)));
        const all = isPlayable(offered) && (!this.#absent || left === undefined);
        this.#filter = all || !left ? null : new TrackFilter(left);
        this.type = all || !left ? offered : without(offered, left);
        this.loss = all ? "" : this.#absent && left ? `The stream has no ${left} at the moment.` : missing(offered);
        return all || left !== undefined;
    }

    #count(bytes) {
        const nowMs = performance.now();
        this.#heardMs = nowMs;
        this.#counted ??= {ms: nowMs, bytes: 0};
        this.#counted.bytes += bytes;
        if (nowMs - this.#counted.ms > RATE_MS) {
            this.bitrate = this.#counted.bytes * 8000 / (nowMs - this.#counted.ms);
            this.#counted = null;
        }
    }

    // Forget the playback. Its picture stays until the next one.
    #close() {
        const playback = this.playback;
        if (playback !== null) {
            this.stalls += playback.stalls;
            this.jumps += playback.jumps;
            playback.close();
            this.playback = null;
        }
    }

    // The browser can't decode the stream, or is stuck: begin anew, and say so if that does not help.
    #failedToPlay(problem) {
        const nowMs = performance.now();
        this.#broken = [...this.#broken.filter(ms => nowMs - ms < BROKEN_MS), nowMs];
        const error = this.#video.error?.message || problem;
        console.warn(`playback failed: ${error}`);
        if (this.#broken.length < BROKEN_LIMIT) {
            this.#show("connecting");
            return 200;
        }
        this.#show("broken", error);
        return BROKEN_RETRY_MS;
    }

    // Browsers without Media Source Extensions play HLS themselves, with more latency.
    async #playNatively(signal) {
        const video = this.#video;
        if (!video.canPlayType("application/vnd.apple.mpegurl")) {
            this.#show("unplayable", "This browser has neither Media Source Extensions nor HLS.");
            return Infinity;
        }
        let live;
        try {
            const response = await fetch(this.#urls.info(), {signal, cache: "no-store"});
            if (!response.ok) {
                const reason = await reasonOf(response);
                return signal.aborted ? 0 : this.#refused(response, reason, 0);
            }
            ({live} = await response.json());
        } catch {
            return signal.aborted ? 0 : this.#unreachable();
        }
        if (!live) {
            this.#show("waiting");
            return POLL_MS;
        }
        video.src = this.#urls.hls();
        const over = new Promise(resolve => {
            for (const name of ["ended", "error"]) {
                video.addEventListener(name, resolve, {once: true, signal});
            }
            signal.addEventListener("abort", resolve, {once: true});
        });
        video.addEventListener("playing", () => {
            this.#failures = 0;
            this.#show("playing");
            this.#events.picture();
        }, {signal});
        video.play().catch(error => error.name === "NotAllowedError" && this.#events.blocked());
        await over;
        this.#show("connecting");
        return this.#backOffMs();
    }

    // Supervision -------------------------------------------------------------------------------------------------------

    #tick() {
        // Date.now() runs on while the computer sleeps; the clock of timers need not.
        if (Date.now() - this.#tickedMs > TICK_MS + SLEPT_MS) {
            this.#suspect();
        }
        this.#tickedMs = Date.now();
        const playback = this.playback;
        if (playback === null || this.#native || this.#giveUp === idle) {
            return;
        }
        const nowMs = performance.now();
        const silentMs = nowMs - this.#heardMs;
        if (silentMs < TICK_MS * 2) {
            this.#show(playback.started ? "playing" : "connecting");
            this.#watchTracks(playback);
            return;
        }
        if (playback.isStalled) {
            this.#show("interrupted");
        }
        const suspect = nowMs - this.#suspectMs < 2 * SILENT_MS;
        if (silentMs > (suspect ? SUSPECT_MS : SILENT_MS) && !this.#asking) {
            this.#ask(silentMs > (suspect ? DEAD_SUSPECT_MS : DEAD_MS));
        }
    }

    // A track without media holds the other one up: begin without it, until it has some.
    #watchTracks(playback) {
        const isBarren = playback.barrenMs > BARREN_MS;
        const lasts = performance.now() - this.#begunMs > 2 * BARREN_MS;
        const returns = this.#absent && lasts && playback.barrenMs < 1000 && this.#filter.removed > RETURNED;
        if (isBarren && severalKinds(this.type)) {
            this.#absent = "audio";
        } else if (isBarren && this.#absent === "audio") {
            this.#absent = "video";
        } else if (isBarren || returns) {
            this.#absent = "";
        } else {
            return;
        }
        this.#giveUp(true);
    }

    // Nothing comes. Give the connection up if the server does not answer, no longer has the stream, or sends it elsewhere.
    async #ask(seemsDead) {
        this.#asking = true;
        const heardMs = this.#heardMs;
        const info = await this.info();
        if (heardMs === this.#heardMs && (!info?.live || seemsDead)) {
            this.#giveUp(info !== null);
        }
        setTimeout(() => {
            this.#asking = false;
        }, SUSPECT_MS);
    }

    #show(state, detail = "") {
        if (state !== this.#state || detail) {
            this.#state = state;
            this.#events.state(state, detail);
        }
    }
}

// Record the last time of an event, for measurements: performance.getEntriesByName(name).
export function mark(name) {
    performance.clearMarks(name);
    performance.mark(name);
}

// Return the reason that the server gives for a refusal.
async function reasonOf(response) {
    try {
        const {error} = JSON.parse((await response.text()).slice(0, 4096));
        return typeof error === "string" ? error.slice(0, 200) : "";
    } catch {
        return "";
    }
}
