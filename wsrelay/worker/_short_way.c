/* The short ways of a worker, as `short_way.py` describes and `PyShortWay` has them in Python.

   Between two calls into Python nothing else runs in this process while the GIL is held, so none of
   this needs a lock. It is given up only to wait in read(2), while `in_read` is set; a write of at
   most PIPE_BUF bytes to a pipe that does not block is too short for that. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <limits.h>
#include <structmember.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 64 * 1024, PREFIX = 4 };

/* Where a tally has the messages taken, and the time of the last (`wire/tally.py`). */
enum { TAKEN, TOOK, TALLY };

#ifdef CLOCK_MONOTONIC_COARSE
#define CLOCK CLOCK_MONOTONIC_COARSE /* some milliseconds late, and read in 5 ns */
#else
#define CLOCK CLOCK_MONOTONIC
#endif

static PyTypeObject *pid_type;    /* wsrelay.values.pid.PID */
static PyObject *relayed_type;    /* wsrelay.values.message.Relayed */
static PyObject *private_tally;   /* wsrelay.wire.tally.private_tally */
static PyObject *empty;           /* b"" */
static PyObject *s_type, *s_data, *s_metadata, *s_client_pid, *s_text, *s_binary, *s_send;

typedef struct {
    PyObject_HEAD
    int reading, writing;
    char is_simple, in_read, has_begun;
    Py_ssize_t at;
    long long received, taken, due, noted;
    PyObject *data, *line, *arrived, *items, *sleepers, *waiters, *listeners, *clients, *wake;
    PyObject *topic;              /* that of the last message, since the next one has the same */
    PyObject *chunk;              /* bytes that were read last; only pages ever filled exist */
    Py_buffer tally;
} ShortWay;

/* MessagePack */

typedef struct {
    const unsigned char *at, *end;
} Cursor;

typedef struct {
    const char *start;
    Py_ssize_t size;
} Span;

static int
take(Cursor *c, Py_ssize_t size, Span *span)
{
    if (c->end - c->at < size) {
        return 0;
    }
    span->start = (const char *)c->at;
    span->size = size;
    c->at += size;
    return 1;
}

/* Take what is preceded by its size in so many bytes. */
static int
take_sized(Cursor *c, int width, Span *span)
{
    size_t size = 0;
    if (c->end - c->at < width) {
        return 0;
    }
    for (int i = 0; i < width; i++) {
        size = size << 8 | *c->at++;
    }
    if (size > (size_t)(c->end - c->at)) {
        return 0;
    }
    return take(c, (Py_ssize_t)size, span);
}

static int
take_text(Cursor *c, Span *span)
{
    if (c->at == c->end) {
        return 0;
    }
    unsigned char first = *c->at++;
    if ((first & 0xE0) == 0xA0) {
        return take(c, first & 0x1F, span);
    }
    return first >= 0xD9 && first <= 0xDB && take_sized(c, 1 << (first - 0xD9), span);
}

static int
take_bytes(Cursor *c, Span *span)
{
    if (c->at == c->end) {
        return 0;
    }
    unsigned char first = *c->at++;
    return first >= 0xC4 && first <= 0xC6 && take_sized(c, 1 << (first - 0xC4), span);
}

static int
take_literal(Cursor *c, const char *literal, Py_ssize_t size)
{
    Span span;
    return take(c, size, &span) && memcmp(span.start, literal, size) == 0;
}

static int
equals(Span span, const char *text, Py_ssize_t size)
{
    return span.size == size && memcmp(span.start, text, size) == 0;
}

static unsigned char *
put_size(unsigned char *to, int width, size_t size)
{
    while (width--) {
        *to++ = (unsigned char)(size >> 8 * width);
    }
    return to;
}

static unsigned char *
put(unsigned char *to, const void *from, size_t size)
{
    memcpy(to, from, size);
    return to + size;
}

/* Of at most PIPE_BUF bytes. */
static unsigned char *
put_text(unsigned char *to, const char *text, size_t size)
{
    if (size < 32) {
        *to++ = (unsigned char)(0xA0 | size);
    } else if (size < 256) {
        *to++ = 0xD9;
        *to++ = (unsigned char)size;
    } else {
        *to++ = 0xDA;
        to = put_size(to, 2, size);
    }
    return put(to, text, size);
}

static unsigned char *
put_bytes_head(unsigned char *to, size_t size)
{
    int width = size < 256 ? 1 : 2;
    *to++ = (unsigned char)(width == 1 ? 0xC4 : 0xC5);
    return put_size(to, width, size);
}

/* From a client to this process */

static int
is_filled(PyObject *container)
{
    return container == NULL || PyObject_Size(container) != 0;
}

/* Return the topic: that of the last message if it is the same. */
static PyObject *
topic_of(ShortWay *self, Span span)
{
    Py_ssize_t size;
    if (self->topic != NULL) {
        const char *last = PyUnicode_AsUTF8AndSize(self->topic, &size);
        if (last != NULL && equals(span, last, size)) {
            Py_INCREF(self->topic);
            return self->topic;
        }
    }
    PyObject *topic = PyUnicode_DecodeUTF8(span.start, span.size, NULL);
    if (topic != NULL) {
        Py_INCREF(topic);
        Py_XSETREF(self->topic, topic);
    }
    return topic;
}

static PyObject *
make_message(PyObject *topic, PyObject *kind, PyObject *data, PyObject *known)
{
    PyObject *client = PyTuple_GET_ITEM(known, 0);
    PyObject *content = PyDict_New();
    PyObject *message = NULL;
    if (content != NULL && PyDict_SetItem(content, s_type, kind) == 0
        && PyDict_SetItem(content, s_data, data) == 0
        && PyDict_SetItem(content, s_metadata, PyTuple_GET_ITEM(known, 1)) == 0
        && PyDict_SetItem(content, s_client_pid, client) == 0) {
        PyObject *fields[] = {topic, content, client};
        message = PyObject_Vectorcall(relayed_type, fields, 3, NULL);
    }
    Py_XDECREF(content);
    return message;
}

/* Return the client's message in the frame that begins there, and set `size` to the frame's.
   Returns NULL, without an error, if it is not complete or anything else. */
static PyObject *
take_message(ShortWay *self, const unsigned char *start, Py_ssize_t left, Py_ssize_t *size)
{
    Span topic_text, client_text, kind_text, data_bytes;
    Cursor c = {start, start + left};
    Span body;
    if (!take_sized(&c, PREFIX, &body)) {
        return NULL;
    }
    *size = PREFIX + body.size;
    c = (Cursor){(const unsigned char *)body.start, (const unsigned char *)body.start + body.size};
    /* [3, topic, client, {"type": kind, "data": data}]: a `RelayFrame` has the tag 3. */
    if (!take_literal(&c, "\x94\x03", 2) || !take_text(&c, &topic_text)
        || !take_text(&c, &client_text) || !take_literal(&c, "\x82\xA4type", 6)
        || !take_text(&c, &kind_text) || !take_literal(&c, "\xA4" "data", 5)) {
        return NULL;
    }
    int is_text = equals(kind_text, "text", 4);
    if (!is_text && !equals(kind_text, "binary", 6)) {
        return NULL;
    }
    if (!(is_text ? take_text(&c, &data_bytes) : take_bytes(&c, &data_bytes)) || c.at != c.end
        || self->taken >= self->due - *size || self->clients == NULL || self->listeners == NULL
        || !PyDict_CheckExact(self->clients) || !PyDict_CheckExact(self->listeners)) {
        return NULL;
    }
    /* A collection could run code that receives, too, in the middle of this. */
    int collects = PyGC_Disable();
    PyObject *message = NULL, *data = NULL, *known = NULL;
    PyObject *topic = topic_of(self, topic_text);
    PyObject *client = PyUnicode_DecodeUTF8(client_text.start, client_text.size, NULL);
    if (topic != NULL && client != NULL && PyDict_Contains(self->listeners, topic) == 0) {
        known = PyDict_GetItemWithError(self->clients, client);
    }
    if (known != NULL && PyTuple_CheckExact(known) && PyTuple_GET_SIZE(known) == 2) {
        data = is_text ? PyUnicode_DecodeUTF8(data_bytes.start, data_bytes.size, NULL)
                       : PyBytes_FromStringAndSize(data_bytes.start, data_bytes.size);
        if (data != NULL) {
            message = make_message(topic, is_text ? s_text : s_binary, data, known);
        }
    }
    PyErr_Clear(); /* the longer way says what is wrong with it */
    Py_XDECREF(topic);
    Py_XDECREF(client);
    Py_XDECREF(data);
    if (collects) {
        PyGC_Enable();
    }
    if (message != NULL) {
        self->received++;
        self->taken += *size;
        int64_t *tally = self->tally.buf;
        struct timespec now;
        clock_gettime(CLOCK, &now);
        tally[TAKEN] = ++self->noted;
        tally[TOOK] = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    return message;
}

/* Keep what was read for others. If there is no memory for a copy, the chunk itself is given away:
   what was read must not be lost. */
static void
keep(ShortWay *self, Py_ssize_t from, Py_ssize_t size)
{
    char *start = PyBytes_AS_STRING(self->chunk);
    PyObject *data = PyBytes_FromStringAndSize(start + from, size);
    if (data == NULL) {
        PyErr_Clear();
        data = self->chunk;
        self->chunk = NULL;
        memmove(start, start + from, (size_t)size);
        start[size] = 0;
        Py_SET_SIZE(data, size);
    }
    self->at = 0;
    Py_XSETREF(self->data, data);
}

/* Let those who wait look again; an error that is set stays. */
static void
wake_others(ShortWay *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *result = NULL;
    /* Again if a signal handler has raised in it: nobody else would wake them. */
    for (int tries = 0; result == NULL && tries < 2 && self->wake != NULL; tries++) {
        result = PyObject_CallNoArgs(self->wake);
        if (result == NULL && type == NULL) {
            PyErr_Fetch(&type, &value, &traceback);
        }
        PyErr_Clear();
    }
    Py_XDECREF(result);
    if (type != NULL) {
        PyErr_Restore(type, value, traceback);
    }
}

static PyObject *
read_message(ShortWay *self)
{
    Py_ssize_t size = -1, used;
    if (self->chunk == NULL && (self->chunk = PyBytes_FromStringAndSize(NULL, CHUNK)) == NULL) {
        return NULL; /* nothing has been read yet */
    }
    self->in_read = 1;
    while (self->reading >= 0) { /* it is -1 in a child that a signal handler has forked */
        int problem;
        Py_BEGIN_ALLOW_THREADS
        size = read(self->reading, PyBytes_AS_STRING(self->chunk), CHUNK);
        problem = errno;
        Py_END_ALLOW_THREADS
        if (size >= 0 || problem != EINTR) {
            break;
        }
        if (PyErr_CheckSignals() != 0) {
            self->in_read = 0;
            wake_others(self);
            return NULL;
        }
    }
    PyObject *message = NULL;
    int others = is_filled(self->sleepers) || is_filled(self->waiters);
    if (size > 0) {
        used = 0;
        /* A message that could not be given out may have come back to the inbox meanwhile. */
        if (!others && self->is_simple && !is_filled(self->items)) {
            message = take_message(self, (unsigned char *)PyBytes_AS_STRING(self->chunk), size,
                                   &used);
        }
        if (message == NULL) {
            used = 0;
        }
        if (used < size) {
            keep(self, used, size - used);
        }
    }
    self->in_read = 0;
    if (others) {
        wake_others(self);
    }
    return message; /* the longer way meets the end and errors of the pipe itself */
}

static PyObject *
ShortWay_next(ShortWay *self)
{
    if (!self->is_simple || self->in_read || self->has_begun || is_filled(self->arrived)
        || is_filled(self->items)) {
        return NULL;
    }
    PyObject *data = self->data;
    if (data == NULL || !PyBytes_CheckExact(data)) {
        return NULL;
    }
    if (PyBytes_GET_SIZE(data) == 0) {
        return read_message(self);
    }
    Py_ssize_t used;
    if (self->at < 0 || self->at >= PyBytes_GET_SIZE(data)) {
        return NULL;
    }
    Py_ssize_t left = PyBytes_GET_SIZE(data) - self->at;
    const unsigned char *start = (const unsigned char *)PyBytes_AS_STRING(data) + self->at;
    Py_INCREF(data);
    PyObject *message = take_message(self, start, left, &used);
    Py_DECREF(data);
    if (message != NULL) {
        if (used < left) {
            self->at += used;
        } else {
            self->at = 0;
            Py_INCREF(empty);
            Py_SETREF(self->data, empty);
        }
    }
    return message;
}

/* From this process to a client */

static PyObject *
ShortWay_send_short(ShortWay *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "send_short() takes a PID, a topic and a payload");
        return NULL;
    }
    PyObject *to = args[0], *topic = args[1], *content = args[2];
    if (!PyObject_TypeCheck(to, pid_type) || !PyUnicode_CheckExact(topic) || !PyDict_CheckExact(content)
        || PyDict_GET_SIZE(content) != 2
        || (topic != s_send && PyUnicode_Compare(topic, s_send) != 0)) {
        Py_RETURN_FALSE;
    }
    if (is_filled(self->line)) {
        goto no;
    }
    PyObject *key;
    for (Py_ssize_t i = 0; PyDict_Next(content, &i, &key, NULL);) {
        if (!PyUnicode_CheckExact(key)) {
            goto no; /* its comparison could run code */
        }
    }
    PyObject *kind = PyDict_GetItemWithError(content, s_type);
    PyObject *data = kind == NULL ? NULL : PyDict_GetItemWithError(content, s_data);
    if (data == NULL || !PyUnicode_CheckExact(kind)
        || !(PyUnicode_CheckExact(data) || PyBytes_CheckExact(data))) {
        goto no;
    }
    Py_ssize_t to_size, kind_size, data_size;
    const char *to_text = PyUnicode_AsUTF8AndSize(to, &to_size);
    const char *kind_text = to_text == NULL ? NULL : PyUnicode_AsUTF8AndSize(kind, &kind_size);
    if (kind_text == NULL) {
        goto no;
    }
    const char *data_bytes;
    int is_text = PyUnicode_CheckExact(data);
    if (!is_text) {
        data_bytes = PyBytes_AS_STRING(data);
        data_size = PyBytes_GET_SIZE(data);
    } else if (PyUnicode_GET_LENGTH(data) > PIPE_BUF) {
        goto no; /* before its UTF-8 is made and kept */
    } else if ((data_bytes = PyUnicode_AsUTF8AndSize(data, &data_size)) == NULL) {
        goto no;
    }
    /* With all heads, no more than 64 bytes come on top of the three. */
    if (to_size > PIPE_BUF || kind_size > PIPE_BUF || data_size > PIPE_BUF
        || to_size + kind_size + data_size > PIPE_BUF - 64) {
        goto no;
    }
    unsigned char payload[PIPE_BUF], frame[PIPE_BUF], *end = payload;
    end = put(end, "\x82\xA4type", 6);
    end = put_text(end, kind_text, (size_t)kind_size);
    end = put(end, "\xA4" "data", 5);
    if (is_text) {
        end = put_text(end, data_bytes, (size_t)data_size);
    } else {
        end = put(put_bytes_head(end, (size_t)data_size), data_bytes, (size_t)data_size);
    }
    size_t size = (size_t)(end - payload);
    /* [1, to, "ws.send", payload]: a `SendFrame` has the tag 1. */
    end = put(frame + PREFIX, "\x94\x01", 2);
    end = put_text(end, to_text, (size_t)to_size);
    end = put(end, "\xA7ws.send", 8);
    end = put(put_bytes_head(end, size), payload, size);
    size = (size_t)(end - frame);
    put_size(frame, PREFIX, size - PREFIX);
    if (write(self->writing, frame, size) == (ssize_t)size) {
        Py_RETURN_TRUE;
    }
no:
    PyErr_Clear(); /* the longer way says what is wrong with it, or waits for room */
    Py_RETURN_FALSE;
}

/* The type */

static PyObject *
ShortWay_note_in(ShortWay *self, PyObject *tally)
{
    Py_buffer given;
    if (PyObject_GetBuffer(tally, &given, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    if (given.len < (Py_ssize_t)(TALLY * sizeof(int64_t))) {
        PyBuffer_Release(&given);
        PyErr_SetString(PyExc_ValueError, "a tally has at least two integers of 64 bits");
        return NULL;
    }
    PyBuffer_Release(&self->tally);
    self->tally = given;
    Py_RETURN_NONE;
}

static PyObject *
ShortWay_get_tally(ShortWay *self, void *Py_UNUSED(closure))
{
    PyObject *tally = self->tally.obj == NULL ? Py_None : self->tally.obj;
    Py_INCREF(tally);
    return tally;
}

static PyObject *
ShortWay_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    ShortWay *self = (ShortWay *)PyType_GenericNew(type, args, named);
    if (self != NULL) {
        self->reading = self->writing = -1;
    }
    return (PyObject *)self;
}

static int
ShortWay_init(ShortWay *self, PyObject *args, PyObject *named)
{
    static char *names[] = {"reading", "writing", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, named, "ii", names, &self->reading, &self->writing)) {
        return -1;
    }
    Py_INCREF(empty);
    Py_XSETREF(self->data, empty);
    PyObject *tally = PyObject_CallNoArgs(private_tally);
    PyObject *noted = tally == NULL ? NULL : ShortWay_note_in(self, tally);
    Py_XDECREF(tally);
    Py_XDECREF(noted);
    return noted == NULL ? -1 : 0;
}

#define EACH_OBJECT(DO)                                                                            \
    DO(data) DO(line) DO(arrived) DO(items) DO(sleepers) DO(waiters) DO(listeners) DO(clients)     \
    DO(wake)

static int
ShortWay_traverse(ShortWay *self, visitproc visit, void *arg)
{
#define VISIT(name) Py_VISIT(self->name);
    EACH_OBJECT(VISIT)
    return 0;
}

static int
ShortWay_clear(ShortWay *self)
{
#define CLEAR(name) Py_CLEAR(self->name);
    EACH_OBJECT(CLEAR)
    Py_CLEAR(self->topic);
    return 0;
}

static void
ShortWay_dealloc(ShortWay *self)
{
    PyObject_GC_UnTrack(self);
    ShortWay_clear(self);
    Py_CLEAR(self->chunk);
    PyBuffer_Release(&self->tally);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

#define OBJECT(name) {#name, T_OBJECT_EX, offsetof(ShortWay, name), 0, NULL},

static PyMemberDef members[] = {
    EACH_OBJECT(OBJECT)
    {"reading", T_INT, offsetof(ShortWay, reading), 0, NULL},
    {"writing", T_INT, offsetof(ShortWay, writing), 0, NULL},
    {"is_simple", T_BOOL, offsetof(ShortWay, is_simple), 0, NULL},
    {"in_read", T_BOOL, offsetof(ShortWay, in_read), 0, NULL},
    {"has_begun", T_BOOL, offsetof(ShortWay, has_begun), 0, NULL},
    {"at", T_PYSSIZET, offsetof(ShortWay, at), 0, NULL},
    {"received", T_LONGLONG, offsetof(ShortWay, received), 0, NULL},
    {"taken", T_LONGLONG, offsetof(ShortWay, taken), 0, NULL},
    {"due", T_LONGLONG, offsetof(ShortWay, due), 0, NULL},
    {"noted", T_LONGLONG, offsetof(ShortWay, noted), 0, NULL},
    {NULL},
};

static PyGetSetDef computed[] = {
    {"tally", (getter)ShortWay_get_tally, NULL, NULL, NULL},
    {NULL},
};

static PyMethodDef methods[] = {
    {"note_in", (PyCFunction)ShortWay_note_in, METH_O,
     PyDoc_STR("Note what is taken there; see `PyShortWay.note_in`.")},
    {"send_short", (PyCFunction)(void (*)(void))ShortWay_send_short, METH_FASTCALL,
     PyDoc_STR("Send a `ws.send` to one client; see `PyShortWay.send_short`.")},
    {NULL},
};

static PyTypeObject ShortWayType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "wsrelay.worker._short_way.ShortWay",
    .tp_doc = PyDoc_STR("The short ways in C; see `PyShortWay`."),
    .tp_basicsize = sizeof(ShortWay),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = ShortWay_new,
    .tp_init = (initproc)ShortWay_init,
    .tp_dealloc = (destructor)ShortWay_dealloc,
    .tp_traverse = (traverseproc)ShortWay_traverse,
    .tp_clear = (inquiry)ShortWay_clear,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = (iternextfunc)ShortWay_next,
    .tp_members = members,
    .tp_getset = computed,
    .tp_methods = methods,
};

static PyObject *
imported(const char *module, const char *name)
{
    PyObject *found = NULL, *from = PyImport_ImportModule(module);
    if (from != NULL) {
        found = PyObject_GetAttrString(from, name);
        Py_DECREF(from);
    }
    return found;
}

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_short_way",
    .m_doc = PyDoc_STR("The short ways of a worker, in C."),
    .m_size = -1,
};

PyMODINIT_FUNC
PyInit__short_way(void)
{
    pid_type = (PyTypeObject *)imported("wsrelay.values.pid", "PID");
    relayed_type = imported("wsrelay.values.message", "Relayed");
    private_tally = imported("wsrelay.wire.tally", "private_tally");
    empty = PyBytes_FromStringAndSize("", 0);
    s_type = PyUnicode_InternFromString("type");
    s_data = PyUnicode_InternFromString("data");
    s_metadata = PyUnicode_InternFromString("metadata");
    s_client_pid = PyUnicode_InternFromString("client_pid");
    s_text = PyUnicode_InternFromString("text");
    s_binary = PyUnicode_InternFromString("binary");
    s_send = PyUnicode_InternFromString("ws.send");
    if (pid_type == NULL || relayed_type == NULL || private_tally == NULL || PyErr_Occurred()) {
        return NULL;
    }
    PyObject *made = PyType_Ready(&ShortWayType) < 0 ? NULL : PyModule_Create(&module);
    if (made != NULL && PyModule_AddObjectRef(made, "ShortWay", (PyObject *)&ShortWayType) < 0) {
        Py_CLEAR(made);
    }
    return made;
}
